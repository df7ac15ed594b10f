"""A folder is written once, whole or not at all, and never changed."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from killed import killed_at
from rag_tuned_memory.adapters.files import relative_files
from rag_tuned_memory.adapters.frozen import write_once
from rag_tuned_memory.errors import AdapterError, StoreFull

LARGE = b"weights" * 100_000


@pytest.fixture
def contents(tmp_path: Path) -> dict[str, bytes | Path]:
    source = tmp_path / "source.bin"
    source.write_bytes(LARGE)
    return {"config.json": b"{}", "weights.bin": source}


def read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in relative_files(folder)}


WHOLE = {"config.json": b"{}", "weights.bin": LARGE}


def test_it_is_written_once(tmp_path: Path, contents: dict[str, bytes | Path]) -> None:
    root, target = tmp_path / "root", tmp_path / "root" / "adapters" / "a-v1"
    assert write_once(root, target, contents)
    assert read(target) == WHOLE
    times = [file.stat().st_mtime_ns for file in target.iterdir()]
    assert not write_once(root, target, contents)
    assert [file.stat().st_mtime_ns for file in target.iterdir()] == times
    assert sorted(path.name for path in root.iterdir()) == [".staging", "adapters"]
    assert list((root / ".staging").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("config.json", b"[]", "config.json differs"),
        ("weights.bin", b"other", "weights.bin differs"),
        ("more.safetensors", b"", "more.safetensors is not part of it"),
        ("config.json", None, "config.json is missing"),
    ],
)
def test_other_content_is_refused(
    tmp_path: Path, contents: dict[str, bytes | Path], name: str, data: bytes | None, words: str
) -> None:
    target = tmp_path / "root" / "a-v1"
    write_once(tmp_path / "root", target, contents)
    if data is None:
        (target / name).unlink()
    else:
        (target / name).write_bytes(data)
    before = read(target)
    with pytest.raises(AdapterError, match=words):
        write_once(tmp_path / "root", target, contents)
    assert read(target) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_at_every_step_leaves_nothing_or_all(tmp_path: Path, contents: dict[str, bytes | Path]) -> None:
    step, seen = 0, set()
    while True:
        step += 1
        root = tmp_path / f"root{step}"
        target = root / "adapters" / "a-v1"
        killed = killed_at(step, lambda root=root, target=target: write_once(root, target, contents))
        there = target.exists()
        seen.add(there)
        assert not there or read(target) == WHOLE
        assert write_once(root, target, contents) != there
        assert read(target) == WHOLE
        if not killed:
            break
    assert step > 10
    assert seen == {True, False}


def test_what_killed_ones_left_behind_goes_with_the_next(tmp_path: Path, contents: dict[str, bytes | Path]) -> None:
    area = tmp_path / "root" / ".staging"
    (area / "dead").mkdir(parents=True)
    (area / "dead" / "half.bin").write_bytes(b"x")
    (area / "dead.lock").touch()
    write_once(tmp_path / "root", tmp_path / "root" / "a-v1", contents)
    assert list(area.iterdir()) == []


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, contents: dict[str, bytes | Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    root, target = tmp_path / "root", tmp_path / "root" / "a-v1"
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreFull, match=r"nothing was exported\. Free some space"):
        write_once(root, target, contents)
    assert not target.exists()
    assert list((root / ".staging").iterdir()) == []
    monkeypatch.undo()
    assert write_once(root, target, contents)


def test_a_folder_that_cannot_be_written(tmp_path: Path, contents: dict[str, bytes | Path]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AdapterError, match="cannot be written"):
        write_once(tmp_path / "file", tmp_path / "file" / "a-v1", contents)
    with pytest.raises(AdapterError):  # a file lies where the folder is to be
        write_once(tmp_path, tmp_path / "file", contents)


def _write(root: Path, contents: dict[str, bytes | Path], times: int) -> None:
    for number in range(times):
        write_once(root, root / f"a-v{number}", contents)


def test_processes_that_write_the_same_at_once(tmp_path: Path, contents: dict[str, bytes | Path]) -> None:
    root, fork = tmp_path / "root", multiprocessing.get_context("fork")
    workers = [fork.Process(target=_write, args=(root, contents, 20)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert all(read(root / f"a-v{number}") == WHOLE for number in range(20))
    assert list((root / ".staging").iterdir()) == []
