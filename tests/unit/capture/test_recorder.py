"""Episodes while they happen: pauses, replays, threads, kills, a store that is gone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from rag_tuned_memory.capture import EpisodeRecorder, OpenEpisode
from rag_tuned_memory.capture.steps import failure, message, tool_call, tool_result
from rag_tuned_memory.errors import InvalidNamespace, InvalidTrajectory, StoreError
from rag_tuned_memory.memory import Memories, Memory, journal
from rag_tuned_memory.memory.journal import folder_of
from rag_tuned_memory.settings import Settings
from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory


def say(ref: str, text: str = "the disk is full") -> Step:
    step = message("user", text, ref=ref)
    assert step is not None
    return step


def begin(recorder: EpisodeRecorder, namespace: str = "alice", source_id: str = "run-1") -> OpenEpisode:
    return recorder.begin(namespace, source="test", source_id=source_id, goal="repair")


def stored(memories: Memories, namespace: str = "alice") -> list[Trajectory]:
    return list(memories.of(namespace).export())


def files(settings: Settings) -> list[Path]:
    return list(folder_of(settings.home).rglob("*.jsonl"))


def test_a_finished_episode_is_recalled_at_once(recorder: EpisodeRecorder, memories: Memories) -> None:
    episode = begin(recorder)
    episode.put(say("1"))
    receipt = recorder.finish(episode, Outcome(success=True))
    assert receipt is not None
    assert memories.of("alice").recall("disk").results[0].trajectory_id == receipt.id == episode.trajectory_id
    (one,) = stored(memories)
    assert (one.goal, one.outcome.success, one.ended_at is None) == ("repair", True, False)


def test_it_can_be_awaited(recorder: EpisodeRecorder, memories: Memories) -> None:
    async def work() -> None:
        episode = begin(recorder)
        episode.put(say("1"))
        await recorder.apause(episode)
        again = begin(recorder)
        again.put(say("2"))
        await recorder.afinish(again)

    asyncio.run(work())
    assert [step.ref for step in stored(memories)[0].steps] == ["1", "2"]


def test_an_episode_in_which_nothing_happened_is_none(recorder: EpisodeRecorder, memories: Memories) -> None:
    assert recorder.finish(begin(recorder)) is None
    assert stored(memories) == []


def test_the_same_key_is_the_same_episode(recorder: EpisodeRecorder) -> None:
    assert begin(recorder) is begin(recorder)
    assert begin(recorder) is not begin(recorder, source_id="run-2")
    assert begin(recorder) is not begin(recorder, namespace="bob")


def test_a_pause_is_stored_without_an_end_and_gone_on_with(recorder: EpisodeRecorder, memories: Memories) -> None:
    episode = begin(recorder)
    episode.put(say("1"))
    recorder.pause(episode)
    assert stored(memories)[0].ended_at is None
    with EpisodeRecorder(memories) as another:  # as another process would
        later = begin(another)
        later.put(say("2"))
        another.finish(later, Outcome(success=True))
    (one,) = stored(memories)
    assert [step.ref for step in one.steps] == ["1", "2"]


def test_a_replay_changes_nothing(recorder: EpisodeRecorder, memories: Memories) -> None:
    for _ in range(3):
        episode = begin(recorder)
        episode.put(say("1"))
        episode.put(tool_call("look", {"at": "disk"}, call_id="c1"))
        episode.put(tool_result("look", "full", call_id="c1"))
        recorder.finish(episode)
    assert len(stored(memories)[0].steps) == 3


def test_results_of_parallel_calls_stand_in_the_order_of_the_calls(recorder: EpisodeRecorder) -> None:
    episode = begin(recorder)
    for call in ("a", "b", "c"):
        episode.put(tool_call("look", {}, call_id=call))
    for call in ("c", "a", "b"):
        episode.put(tool_result("look", call, call_id=call))
    episode.put(say("last"))
    trajectory = episode.trajectory()
    assert trajectory is not None
    assert [step.call_id or step.ref for step in trajectory.steps] == ["a", "b", "c", "a", "b", "c", "last"]


def test_threads_lose_no_step(recorder: EpisodeRecorder, memories: Memories) -> None:
    episode = begin(recorder)

    def work(thread: int) -> None:
        for number in range(50):
            episode.put(say(f"{thread}/{number}"))
            if number % 20 == 0:
                recorder.pause(episode)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    recorder.finish(episode)
    assert len({step.ref for step in stored(memories)[0].steps}) == 200


def test_the_first_steps_of_several_episodes_may_come_at_once(
    recorder: EpisodeRecorder, memories: Memories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread finds that nothing is locked yet; a second lock on the folder would wait for the first for ever."""

    def slow(*args: Any, **options: Any) -> FileLock:
        time.sleep(0.05)
        return FileLock(*args, **options)

    monkeypatch.setattr(journal, "FileLock", slow)
    ready = threading.Barrier(8)

    def work(number: int) -> None:
        episode = recorder.begin("ops", source="test", source_id=str(number))
        ready.wait()
        episode.put(failure(ValueError("x"), ref=str(number)))
        recorder.finish(episode)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert memories.of("ops").stats().store.trajectories == 8


def test_a_step_seen_again_keeps_its_time(recorder: EpisodeRecorder) -> None:
    episode = recorder.begin("ops", source="test", source_id="run")
    first = failure(ValueError("x"), ref="1")
    episode.put(first)
    episode.put(failure(ValueError("x"), ref="1"))
    trajectory = episode.trajectory()
    assert trajectory is not None
    assert (trajectory.steps, episode.changes) == ((first,), 1)


def test_a_step_without_a_name_is_refused(recorder: EpisodeRecorder) -> None:
    with pytest.raises(InvalidTrajectory, match="needs call_id or ref"):
        begin(recorder).put(Step(kind=StepKind.MESSAGE, text="who said this?"))


def test_another_namespace_needs_memories(settings: Settings) -> None:
    with Memory("alice", settings=settings) as memory, EpisodeRecorder(memory) as recorder:
        with pytest.raises(InvalidNamespace, match="Memories"):
            begin(recorder, namespace="bob")
        begin(recorder).put(say("1"))


def test_a_store_that_fails_costs_nothing(
    recorder: EpisodeRecorder, memories: Memories, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise StoreError("the store is down")

    episode = begin(recorder)
    episode.put(say("1"))
    with monkeypatch.context() as patched:
        patched.setattr(Memory, "extend", broken)
        with pytest.raises(StoreError):
            recorder.finish(episode)
    assert len(files(settings)) == 1
    recorder.finish(episode)
    assert len(stored(memories)) == 1
    assert files(settings) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from rag_tuned_memory.capture import EpisodeRecorder
from rag_tuned_memory.capture.steps import message
from rag_tuned_memory.memory import Memories
from rag_tuned_memory.settings import Settings
recorder = EpisodeRecorder(Memories(settings=Settings(home=Path(sys.argv[1]), embedder="hashing")))
for run in ("a", "b"):
    episode = recorder.begin("alice", source="test", source_id=run, goal="repair")
    for number in range(5):
        episode.put(message("user", f"step {number}", ref=str(number)))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_recovered(
    recorder: EpisodeRecorder, memories: Memories, settings: Settings
) -> None:
    code = subprocess.run([sys.executable, "-c", KILLED, str(settings.home)], check=False).returncode
    assert code == -signal.SIGKILL
    assert len(recorder.recover()) == 2
    assert [len(one.steps) for one in stored(memories)] == [5, 5]
    assert (recorder.recover(), files(settings)) == ([], [])


def test_a_torn_last_line_costs_that_step_only(
    recorder: EpisodeRecorder, memories: Memories, settings: Settings
) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(settings.home)], check=False)
    for file in files(settings):
        file.write_bytes(file.read_bytes()[:-7])
    recorder.recover()
    assert [len(one.steps) for one in stored(memories)] == [4, 4]


def test_a_live_recorders_episodes_are_left_to_it(recorder: EpisodeRecorder, memories: Memories) -> None:
    with EpisodeRecorder(memories) as another:
        begin(another).put(say("1"))
        assert recorder.recover() == []
    assert len(stored(memories)) == 1  # stored by its close


def test_forgetting_reaches_open_episodes(recorder: EpisodeRecorder, memories: Memories, settings: Settings) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(settings.home)], check=False)
    first, second = sorted(files(settings))
    memories.of("bob").forget_all()
    assert len(files(settings)) == 2
    memories.of("alice").forget([first.stem.partition("@")[2]])
    assert files(settings) == [second]
    memories.of("alice").forget_all()
    assert (files(settings), recorder.recover()) == ([], [])


def test_a_disk_that_cannot_be_written_does_not_stop_the_agent(
    recorder: EpisodeRecorder, memories: Memories, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rag_tuned_memory.memory.journal.Journal.write", full)
    episode = begin(recorder)
    episode.put(say("1"))
    assert "No space left" in caplog.text
    recorder.finish(episode)
    assert len(stored(memories)) == 1


@pytest.mark.parametrize("size", [500, 5_000, 3_000_000])
def test_a_step_that_is_too_large_is_cut_and_says_so(settings: Settings, size: int) -> None:
    small = settings.model_copy(update={"max_step_bytes": 4000})
    with Memories(settings=small) as memories, EpisodeRecorder(memories) as recorder:
        episode = begin(recorder)
        episode.put(say("1", "\x01é" * size))
        episode.put(tool_call("write", {"text": "x" * size}, call_id="c"))
        episode.put(tool_result("write", "y" * size, call_id="c", error="z" * size))
        recorder.finish(episode)
        whole = size == 500
        assert [("cut" in step.model_dump_json()) for step in stored(memories)[0].steps[1:]] == [not whole] * 2


def test_steps_take_what_frameworks_hand_over() -> None:
    call = tool_call("t", {"a": {1, 2}, "b": b"x", "c": float("nan"), "d": object, "e": "\ud800"}, call_id="c")
    assert call.arguments is not None
    assert call.arguments["c"] == "nan"
    assert call.arguments["e"] == "\ufffd"
    assert tool_call("t", "plain", call_id="c").arguments == {"input": "plain"}
    assert tool_result(None, {"ok": True}, call_id="c").text == '{"ok": true}'
    assert message("user", "  ", ref="1") is None
    assert failure(ValueError(), ref="1").error == "ValueError"


def test_what_is_nested_too_deeply_is_told_as_text_and_can_be_stored(
    recorder: EpisodeRecorder, memories: Memories
) -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    circle: dict[str, object] = {}
    circle["self"] = circle
    episode = begin(recorder)
    episode.put(tool_call("t", {"deep": deep, "circle": circle}, call_id="c"))
    episode.put(tool_result("t", deep, call_id="c"))
    recorder.finish(episode)
    assert "nested too deeply" in str(stored(memories)[0].steps[0].arguments)
