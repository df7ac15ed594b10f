"""One episode from several records of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from rag_tuned_memory.errors import InvalidNamespace
from rag_tuned_memory.memory import Memory
from rag_tuned_memory.memory.merging import merged
from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory


def said(ref: str | None, text: str, **more: Any) -> Step:
    return Step(kind=StepKind.MESSAGE, text=text, ref=ref, **more)


def run(*steps: Step, **fields: Any) -> Trajectory:
    return Trajectory(namespace="operations", source="test", source_id="run-1", steps=steps, **fields)


def stored(memory: Memory) -> Trajectory:
    (one,) = memory.export()
    return one


def test_what_is_not_there_is_recorded(memory: Memory) -> None:
    assert memory.extend(run(said("1", "the disk is full"))).changed
    assert memory.recall("disk").results


def test_steps_that_the_new_one_lacks_stay(memory: Memory) -> None:
    memory.extend(run(said("1", "the disk is full")))
    memory.extend(run(said("2", "logs were purged")))
    assert [step.text for step in stored(memory).steps] == ["the disk is full", "logs were purged"]


def test_the_same_step_is_replaced_in_its_place(memory: Memory) -> None:
    memory.extend(run(said("1", "one"), said("2", "two"), said("3", "three")))
    memory.extend(run(said("2", "two, corrected"), said("4", "four")))
    assert [step.text for step in stored(memory).steps] == ["one", "two, corrected", "three", "four"]


def test_a_call_and_its_result_are_two_steps(memory: Memory) -> None:
    call = Step(kind=StepKind.TOOL_CALL, tool="look", arguments={"at": "disk"}, call_id="c1", ref="m1")
    result = Step(kind=StepKind.TOOL_RESULT, tool="look", text="full", call_id="c1", ref="m2")
    memory.extend(run(call))
    memory.extend(run(call, result))
    assert [step.kind for step in stored(memory).steps] == [StepKind.TOOL_CALL, StepKind.TOOL_RESULT]


def test_doing_it_twice_changes_nothing(memory: Memory) -> None:
    first = run(said("1", "one"), said(None, "no name"), outcome=Outcome(success=True))
    assert memory.extend(first).changed
    assert not memory.extend(first).changed
    assert len(stored(memory).steps) == 2


def test_an_outcome_stays_until_there_is_another() -> None:
    ended = run(said("1", "one"), outcome=Outcome(success=False), goal="repair")
    assert merged(ended, run(said("2", "two"))).outcome.success is False
    assert merged(ended, run(said("2", "two"), outcome=Outcome(success=True))).outcome.success is True
    assert merged(ended, run(said("2", "two"))).goal == "repair"


def test_a_failed_run_that_went_on_and_ended_has_not_failed() -> None:
    failed = run(said("1", "one"), outcome=Outcome(success=False))
    ended = run(said("1", "one"), said("2", "two"), ended_at=datetime(2026, 5, 4, tzinfo=UTC))
    assert merged(failed, ended).outcome == Outcome()


def test_seeing_a_step_again_does_not_change_when_it_happened(memory: Memory) -> None:
    monday, tuesday = (datetime(2026, 5, day, tzinfo=UTC) for day in (4, 5))
    memory.extend(run(said("1", "one", started_at=monday), said("2", "two", started_at=monday)))
    memory.extend(run(said("1", "one", started_at=tuesday), said("2", "changed", started_at=tuesday)))
    assert [step.started_at for step in stored(memory).steps] == [monday, tuesday]


def test_what_a_killed_process_left_does_not_undo_what_came_after(memory: Memory) -> None:
    monday, tuesday = (datetime(2026, 5, day, tzinfo=UTC) for day in (4, 5))
    memory.extend(run(said("1", "the second try", started_at=tuesday)))
    memory.extend(run(said("1", "the first try", started_at=monday), said("2", "beside it", started_at=monday)))
    assert [step.text for step in stored(memory).steps] == ["the second try", "beside it"]


def test_feedback_that_came_meanwhile_stays_last_and_decides(memory: Memory) -> None:
    receipt = memory.extend(run(said("1", "one"), outcome=Outcome(success=True)))
    memory.feedback(receipt.id, "it broke again", success=False)
    memory.extend(run(said("1", "one"), said("2", "two"), outcome=Outcome(success=True)))
    found = stored(memory)
    assert [step.kind for step in found.steps] == [StepKind.MESSAGE, StepKind.MESSAGE, StepKind.FEEDBACK]
    assert found.outcome.success is False


def test_another_namespace_is_refused(memory: Memory) -> None:
    with pytest.raises(InvalidNamespace):
        memory.extend(run(said("1", "one")).model_copy(update={"namespace": "sales"}))
