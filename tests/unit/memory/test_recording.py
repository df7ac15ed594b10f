from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from incidents import episode
from rag_tuned_memory.errors import InvalidNamespace, InvalidRecord, InvalidTrajectory, TrajectoryNotFound
from rag_tuned_memory.memory import Memory
from rag_tuned_memory.recall import assemble
from rag_tuned_memory.settings import Settings
from rag_tuned_memory.trajectory import StepKind, Trajectory


def only(memory: Memory) -> Trajectory:
    [found] = memory.export()
    return found


def test_what_is_recorded_is_recalled_at_once(memory: Memory) -> None:
    receipt = memory.record(episode())
    assert receipt.changed
    assert memory.recall("which disk is full?").results[0].trajectory_id == receipt.id


def test_recording_again_changes_nothing(memory: Memory) -> None:
    first = memory.record(episode())
    assert memory.record(episode()) == type(first)(first.id, changed=False)
    assert memory.stats().store.trajectories == 1


def test_a_trajectory_and_its_fields_are_the_same(memory: Memory) -> None:
    trajectory = Trajectory.parse({"namespace": "operations", **episode()})
    assert memory.record(trajectory).id == memory.record(episode()).id == trajectory.id


def test_another_namespace_is_refused(memory: Memory) -> None:
    with pytest.raises(InvalidNamespace, match="belongs to namespace 'other'"):
        memory.record(episode(namespace="other"))
    with pytest.raises(InvalidNamespace, match="'other'"):
        memory.record(Trajectory.parse({**episode(), "namespace": "other"}))
    assert memory.stats().store.trajectories == 0


@pytest.mark.parametrize("given", ["text", None, [episode()], 7])
def test_what_is_no_mapping_is_refused(memory: Memory, given: Any) -> None:
    with pytest.raises(InvalidTrajectory, match="a mapping of its fields is needed"):
        memory.record(given)


def test_without_a_source_id_the_id_is_that_of_the_content_and_survives_feedback(memory: Memory) -> None:
    fields = episode()
    del fields["source_id"]
    trajectory = Trajectory.parse({"namespace": "operations", **fields})
    receipt = memory.record(fields)
    assert receipt.id == trajectory.id
    memory.feedback(receipt.id, "well done")
    assert only(memory).id == receipt.id
    assert not memory.record(fields).changed


def test_recalled_text_is_not_recorded(memory: Memory) -> None:
    memory.record(episode(1))
    echo = assemble(memory.recall("which disk is full?"))
    assert "db-1" in echo
    receipt = memory.record(
        episode(
            2,
            goal=f"repair db-2 {echo}",
            steps=[
                {"kind": "message", "actor": "system", "text": echo},
                {"kind": "message", "actor": "user", "text": f"db-2 is slow.\n{echo}"},
                {"kind": "tool_call", "tool": "ask", "arguments": {"prompts": [f"{echo} and now?"], "n": 1}},
            ],
        )
    )
    stored = next(one for one in memory.export() if one.id == receipt.id)
    assert stored.goal == "repair db-2 "
    assert [step.text for step in stored.steps] == ["db-2 is slow.", ""]
    assert stored.steps[1].arguments == {"prompts": [" and now?"], "n": 1}
    assert "db-1" not in stored.model_dump_json()


def test_nothing_but_recalled_text_is_refused(memory: Memory) -> None:
    memory.record(episode(1))
    echo = assemble(memory.recall("disk"))
    with pytest.raises(InvalidTrajectory, match="nothing is left"):
        memory.record({"steps": [{"kind": "message", "text": echo}]})


def nested(levels: int) -> Any:
    value: Any = "end"
    for _ in range(levels):
        value = [value]
    return value


def test_what_could_not_be_read_again_is_refused(memory: Memory) -> None:
    deep = {"kind": "tool_call", "tool": "df", "arguments": {"paths": nested(200)}}
    with pytest.raises(InvalidTrajectory, match=r"steps\.0: nested deeper than 100 levels"):
        memory.record({"steps": [deep]})
    with pytest.raises(InvalidTrajectory, match="metadata: nested deeper than 100 levels"):
        memory.record(episode(metadata={"value": nested(100)}))
    as_deep_as_may_be = {"value": nested(99)}
    memory.record(episode(metadata=as_deep_as_may_be))
    assert [one.metadata for one in memory.export()] == [as_deep_as_may_be]


def test_feedback_is_a_step_that_is_recalled_and_sets_the_outcome(memory: Memory) -> None:
    receipt = memory.record(episode())
    memory.feedback(receipt.id, "the wrong partition was enlarged", success=False, score=0.2)
    stored = only(memory)
    assert stored.steps[-1].kind is StepKind.FEEDBACK
    assert stored.outcome.model_dump() == {
        "success": False,
        "score": 0.2,
        "feedback": "the wrong partition was enlarged",
    }
    assert "partition" in memory.recall("wrong partition").results[0].text


def test_feedback_leaves_what_it_does_not_speak_of(memory: Memory) -> None:
    receipt = memory.record(episode(outcome={"success": True, "score": 0.5}))
    memory.feedback(receipt.id, "fine")
    assert (only(memory).outcome.success, only(memory).outcome.score) == (True, 0.5)


def test_feedback_does_not_date_an_undated_episode(memory: Memory) -> None:
    receipt = memory.record(episode(started_at=None))
    memory.feedback(receipt.id, "fine")
    assert only(memory).time is None


def test_recording_an_episode_again_keeps_the_feedback_on_it(memory: Memory) -> None:
    receipt = memory.record(episode())
    memory.feedback(receipt.id, "bad", success=False)
    memory.feedback(receipt.id, "no, good", success=True, score=1)
    assert not memory.record(episode()).changed
    longer = episode(steps=[*episode()["steps"], {"kind": "message", "text": "closed"}])
    assert memory.record_many([longer])[0].changed
    stored = only(memory)
    assert [step.text for step in stored.steps][-3:] == ["closed", "bad", "no, good"]
    assert (stored.outcome.success, stored.outcome.score) == (True, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": " "}, "feedback needs a text"),
        ({"text": "x\ud800"}, "not valid UTF-8"),
        ({"text": "x", "score": float("nan")}, "must be a finite number"),
        ({"text": "x", "score": "high"}, "must be a finite number"),
        ({"text": "x", "success": "yes"}, "must be true, false or nothing"),
    ],
)
def test_bad_feedback_changes_nothing(memory: Memory, arguments: dict[str, Any], message: str) -> None:
    receipt = memory.record(episode())
    before = only(memory)
    with pytest.raises(ValueError, match=message):
        memory.feedback(receipt.id, **arguments)
    assert only(memory) == before


def test_feedback_on_what_is_not_there(memory: Memory) -> None:
    with pytest.raises(TrajectoryNotFound):
        memory.feedback("nobody", "fine")


def give_feedback(home: Path, trajectory_id: str, who: int) -> None:
    with Memory("operations", settings=Settings(home=home, embedder="hashing")) as memory:
        for number in range(5):
            memory.feedback(trajectory_id, f"remark {who}.{number}")


def test_feedback_of_several_processes_is_all_kept(memory: Memory) -> None:
    receipt = memory.record(episode())
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=give_feedback, args=(memory.settings.home, receipt.id, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    said = {step.text for step in only(memory).steps if step.kind is StepKind.FEEDBACK}
    assert said == {f"remark {who}.{number}" for who in range(3) for number in range(5)}


def test_many_are_recorded_and_reported_in_order(memory: Memory) -> None:
    told: list[str] = []
    given = [episode(n) for n in range(1, 8)]
    receipts = memory.record_many(iter(given), progress=lambda one: told.append(one.id))
    assert [one.changed for one in receipts] == [True] * 7
    assert told == [one.id for one in receipts]
    assert [one.changed for one in memory.record_many(given)] == [False] * 7


def test_a_bad_one_among_many_costs_only_itself(memory: Memory) -> None:
    bad = episode(2, steps=[{"kind": "dream", "text": "x"}])
    receipts = memory.record_many([episode(1), bad, episode(3)])
    assert [one.changed for one in receipts] == [True, False, True]
    assert receipts[1].id == ""
    assert "steps.0.kind" in str(receipts[1].error)
    assert memory.stats().store.trajectories == 2


def test_the_same_episode_twice_in_a_batch_is_one_and_the_later_counts(memory: Memory) -> None:
    later = episode(1, goal="another goal")
    receipts = memory.record_many([episode(1), episode(1), later])
    assert [one.changed for one in receipts] == [True, False, True]
    assert only(memory).goal == "another goal"


def test_where_the_source_breaks_off_what_came_before_is_stored(memory: Memory) -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield from (episode(n) for n in range(1, 6))
        raise InvalidRecord("malformed", path="file.jsonl", line=6)

    with pytest.raises(InvalidRecord, match=r"file\.jsonl:6"):
        memory.record_many(source())
    assert memory.stats().store.trajectories == 5


def test_more_than_a_batch(memory: Memory) -> None:
    receipts = memory.record_many(episode(1 + n % 28, source_id=f"i{n}") for n in range(70))
    assert len({one.id for one in receipts if one.changed}) == 70


def test_export_is_taken_up_again(memory: Memory, tmp_path: Path) -> None:
    memory.record_many([episode(1), episode(2)])
    with Memory("copy", settings=memory.settings) as copy:
        copy.record_many(json.loads(one.model_dump_json(exclude={"id", "namespace"})) for one in memory.export())
        assert [one.content_hash for one in copy.export()] == [one.content_hash for one in memory.export()]
