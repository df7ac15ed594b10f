"""Two records of one episode made one: what a resumed or replayed run adds to what is stored."""

from __future__ import annotations

from collections.abc import Sequence

from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory

StepKey = tuple[StepKind, str]


def step_key(step: Step) -> StepKey | None:
    """What makes two steps the same one: their kind with the call's id, or else the source's own id; None: nothing."""
    name = step.call_id or step.ref
    return (step.kind, name) if name else None


def merged(stored: Trajectory, new: Trajectory) -> Trajectory:
    """``stored`` with its steps replaced by those of ``new`` that are the same ones, and the others at the end.

    Goal, outcome and times are those of ``new`` where it has them; metadata is joined. A run that went on and ended
    after it had failed has not failed: its outcome counts also where it is unknown.
    """
    ended = new.ended_at is not None or new.outcome != Outcome()
    return Trajectory(
        namespace=stored.namespace,
        source=stored.source,
        source_id=stored.source_id,
        goal=new.goal or stored.goal,
        outcome=new.outcome if ended else stored.outcome,
        started_at=stored.started_at or new.started_at,
        ended_at=new.ended_at or stored.ended_at,
        metadata={**stored.metadata, **new.metadata},
        steps=_merged_steps(stored.steps, new.steps),
    )


def newest(known: Step, new: Step) -> Step:
    """The one of two versions of a step that counts: ``new``, unless it says the same or is the older one.

    Seeing a step once more does not change when it happened; and what a killed process left may be stored after others
    have gone on with its run.
    """
    times = {"started_at": known.started_at, "ended_at": known.ended_at}
    older = known.started_at is not None and new.started_at is not None and new.started_at < known.started_at
    return known if older or new.model_copy(update=times) == known else new


def _merged_steps(stored: Sequence[Step], new: Sequence[Step]) -> tuple[Step, ...]:
    by_key = {key: step for step in new if (key := step_key(step))}
    kept = [newest(step, by_key.get(key, step)) if (key := step_key(step)) else step for step in stored]
    there = {key for step in stored if (key := step_key(step))}
    added = [step for step in new if (step_key(step) not in there if step_key(step) else step not in stored)]
    return (*kept, *added)
