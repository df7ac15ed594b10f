from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from incidents import episode
from rag_tuned_memory.adapters import State
from rag_tuned_memory.distil.lock import RunLock
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.memory import Memory
from rag_tuned_memory.routing.base import Route
from rag_tuned_memory.serving.scripted import ScriptedBackend
from rag_tuned_memory.store import Filter
from served_adapter import register

SECRET = "the vault code is 4711"


@pytest.fixture
def three(memory: Memory) -> list[str]:
    secret = episode(3, steps=[{"kind": "message", "text": SECRET}])
    return [memory.record(one).id for one in (episode(1), episode(2), secret)]


def test_what_is_forgotten_is_gone_from_store_and_file(memory: Memory, three: list[str]) -> None:
    receipt = memory.forget([three[2], "nobody"])
    assert (receipt.removed, receipt.missing) == ((three[2],), ("nobody",))
    assert (receipt.tainted, receipt.remaining, receipt.retrain_due) == ((), (), False)
    assert all("4711" not in one.text for one in memory.recall("vault code").results)
    memory.close()
    for file in memory.settings.home.glob("memory.db*"):
        assert SECRET.encode() not in file.read_bytes()


def test_by_filter(memory: Memory, three: list[str]) -> None:
    memory.record(episode(4, outcome={"success": False}))
    receipt = memory.forget(where=Filter(success=True))
    assert set(receipt.removed) == set(three)
    assert memory.stats().store.trajectories == 1


def test_all_of_a_namespace(memory: Memory, three: list[str]) -> None:
    assert set(memory.forget_all().removed) == set(three)
    assert memory.stats().store.trajectories == 0
    assert memory.forget_all().removed == ()
    assert memory.record(episode(1)).changed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either trajectory_ids or where"),
        ({"trajectory_ids": ["x"], "where": Filter(tool="df")}, "either trajectory_ids or where"),
        ({"where": Filter()}, "lets every trajectory through"),
        ({"trajectory_ids": "x"}, "must be a list of ids"),
        ({"trajectory_ids": [1]}, "must be a list of ids"),
    ],
)
def test_unclear_wishes_forget_nothing(
    memory: Memory, three: list[str], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        memory.forget(**arguments)
    assert memory.stats().store.trajectories == len(three)


def test_adapters_that_learned_it_are_tainted_and_leave_service_at_once(
    memory: Memory, three: list[str], backend: ScriptedBackend, tmp_path: Path
) -> None:
    registry = memory.registry
    older = register(registry, "operations", tmp_path, three[:1]).name
    newer = register(registry, "operations", tmp_path, three, sequence=3).name
    registry.promote(older, "first")
    registry.promote(newer, "better")
    assert memory.answer("which disk is full?", route=Route.TUNED).adapter == newer

    receipt = memory.forget([three[2]])

    assert receipt.tainted == (newer,)
    assert receipt.retrain_due
    assert registry.state(newer) is State.TAINTED
    assert registry.state(older) is State.RETIRED
    assert memory.answer("which disk is full?").adapter is None
    assert newer not in {request.adapter for request in backend.requests[-1:]}
    assert any(newer in one and str(registry.files_of(newer)) in one for one in receipt.remaining)


def test_the_adapter_is_unloaded_before_forget_returns(
    memory: Memory, three: list[str], backend: ScriptedBackend, tmp_path: Path
) -> None:
    name = register(memory.registry, "operations", tmp_path, three, sequence=3).name
    memory.registry.promote(name, "first")
    memory.answer("which disk is full?", route=Route.TUNED)
    loaded = memory._running.portal().call(backend.adapters)
    assert loaded == [name]
    memory.forget(three[:1])
    assert memory._running.portal().call(backend.adapters) == []


def test_a_forget_that_was_interrupted_is_completed_by_another(
    memory: Memory, three: list[str], tmp_path: Path
) -> None:
    name = register(memory.registry, "operations", tmp_path, three, sequence=3).name
    portal = memory._running.portal()
    portal.call(lambda: memory._core._parts.store().delete("operations", three[:1]))  # and then it was killed
    receipt = memory.forget(three[:1])
    assert (receipt.removed, receipt.missing, receipt.tainted) == ((), (three[0],), (name,))


def test_adapters_of_other_namespaces_are_left_alone(memory: Memory, three: list[str], tmp_path: Path) -> None:
    name = register(memory.registry, "other", tmp_path, three).name
    memory.forget(three)
    assert memory.registry.state(name) is State.ACCEPTED


def test_data_sets_of_unfinished_runs_are_deleted(memory: Memory, three: list[str]) -> None:
    run = memory.settings.runs_dir / "operations" / "0123"
    other = memory.settings.runs_dir / "other" / "0123"
    replies = memory.settings.home / "teacher" / "operations"
    for folder in (run, other, replies):
        folder.mkdir(parents=True)
        (folder / "dataset.jsonl").write_text(SECRET)
    receipt = memory.forget(three[2:])
    assert set(receipt.deleted) == {str(run), str(replies)}
    assert not run.exists()
    assert not replies.exists()
    assert other.exists()


def test_a_run_under_way_is_named(memory: Memory, three: list[str]) -> None:
    run = memory.settings.runs_dir / "operations" / "0123"
    run.mkdir(parents=True)
    with RunLock(memory.settings.runs_dir, "operations"):
        receipt = memory.forget(three[2:])
    assert run.exists()
    assert receipt.removed == (three[2],)
    assert any("A run is under way" in one and str(run.parent) in one for one in receipt.remaining)
