import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.distil.lock import RunLock
from rag_tuned_memory.errors import DistilBusy, DistilError, InvalidNamespace

HOLD = """
import sys, time
from pathlib import Path
from rag_tuned_memory.distil.lock import RunLock
with RunLock(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), "Zoë"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_who_and_since_when(tmp_path: Path, other_process: subprocess.Popen[str]) -> None:
    (holder_file,) = tmp_path.glob("*.holder.json")
    said = json.loads(holder_file.read_text())
    assert (said["pid"], said["namespace"]) == (other_process.pid, "Zoë")
    since = said["since"][:19].replace("T", " ")
    with pytest.raises(DistilBusy, match=rf"'Zoë' is being distilled by process {other_process.pid} .*{since} UTC"):
        RunLock(tmp_path, "Zoë").acquire()
    with RunLock(tmp_path, "bob"):
        pass


def test_a_killed_process_lets_go(tmp_path: Path, other_process: subprocess.Popen[str]) -> None:
    os.kill(other_process.pid, signal.SIGKILL)
    other_process.wait()
    lock = RunLock(tmp_path, "Zoë")
    left_behind = lock.holder()
    assert left_behind is not None
    assert left_behind.pid == other_process.pid
    with lock:
        now = lock.holder()
        assert now is not None
        assert now.pid == os.getpid()
    assert lock.holder() is None


def test_two_locks_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path, "a"), RunLock(tmp_path, "a")
    with first:
        for lock in (first, second):
            with pytest.raises(DistilBusy, match=f"process {os.getpid()}"):
                lock.acquire()
        assert first.holder() is not None
    with second:
        pass
    second.release()


def test_enter_in_one_thread_and_leave_in_another(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, "a")
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    with pytest.raises(DistilBusy):
        RunLock(tmp_path, "a").acquire()
    lock.release()
    with RunLock(tmp_path, "a"):
        pass


def test_an_unreadable_holder_file_does_not_hide_that_it_is_busy(tmp_path: Path) -> None:
    with RunLock(tmp_path, "a"):
        (tmp_path / "a.holder.json").write_text("{")
        with pytest.raises(DistilBusy, match="by another process"):
            RunLock(tmp_path, "a").acquire()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DistilError, match=r"cannot be written.*RTM_HOME"):
        RunLock(tmp_path / "file", "a").acquire()
    with pytest.raises(InvalidNamespace):
        RunLock(tmp_path, " ")


def _race(folder: Path, results: Any) -> None:
    won = 0
    for _ in range(200):
        try:
            with RunLock(folder, "a"):
                # Only one process can be in here: a second would find the file.
                os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
                os.unlink(folder / "inside")
                won += 1
        except DistilBusy:
            pass
    results.put(won)


def test_never_two_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_race, args=(tmp_path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sum(results.get(timeout=5) for _ in processes) > 0
