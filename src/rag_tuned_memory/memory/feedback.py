"""Feedback on an episode that was recorded: one more step, and what it says of the outcome.

A feedback step keeps what it changed in its metadata, so that recording the episode again (an import that is repeated,
an agent that records after each step) does not lose what people said of it meanwhile.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rag_tuned_memory.errors import InvalidInput, InvalidTrajectory
from rag_tuned_memory.trajectory import Step, StepKind, Trajectory

_MARK = "rtm_feedback"


def feedback_step(text: str, *, success: bool | None = None, score: float | None = None) -> Step:
    """A step that says what somebody thinks of an episode, now.

    Raises:
        InvalidTrajectory: ``text`` is empty or no valid UTF-8.
        InvalidInput: ``score`` is no finite number, ``success`` no truth value.
    """
    if not isinstance(text, str) or not text.strip():
        raise InvalidTrajectory("feedback needs a text", place="feedback.text", remedy="Say what was good or bad.")
    if success is not None and not isinstance(success, bool):
        raise InvalidInput(f"must be true, false or nothing, is {success!r}", place="feedback.success")
    if score is not None and (
        isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score)
    ):
        raise InvalidInput(f"must be a finite number, is {score!r}", place="feedback.score")
    fields = {
        "kind": StepKind.FEEDBACK,
        "text": text,
        "ended_at": datetime.now(UTC),  # a start would date an episode that has no date
        "metadata": {_MARK: {"id": uuid.uuid4().hex, "success": success, "score": score}},
    }
    # by way of a trajectory, so that a wrong text gives the same error as in `record`
    return Trajectory.parse({"namespace": "feedback", "steps": [fields]}, place="feedback").steps[0]


def with_feedback(trajectory: Trajectory, steps: Sequence[Step]) -> Trajectory:
    """``trajectory`` with these feedback steps at its end, and its outcome as the last of them says."""
    there = {_mark(step)["id"] for step in trajectory.steps if _mark(step)}
    new = [step for step in steps if _mark(step)["id"] not in there]
    if not new:
        return trajectory
    outcome = trajectory.outcome
    for step in new:
        said = {key: value for key in ("success", "score") if (value := _mark(step)[key]) is not None}
        outcome = outcome.model_copy(update={**said, "feedback": step.text})
    fields = trajectory.model_dump(exclude={"id", "steps", "outcome"})
    return Trajectory(**fields, steps=(*trajectory.steps, *new), outcome=outcome)


def given_feedback(trajectory: Trajectory) -> list[Step]:
    """The steps that ``with_feedback`` added."""
    return [step for step in trajectory.steps if _mark(step)]


def _mark(step: Step) -> dict[str, Any]:
    mark = step.metadata.get(_MARK) if step.kind is StepKind.FEEDBACK else None
    return mark if isinstance(mark, dict) and {"id", "success", "score"} <= mark.keys() else {}
