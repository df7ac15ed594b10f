"""What is done to a trajectory before it is stored: checked, bound to its namespace, freed of recalled text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from rag_tuned_memory.errors import InvalidNamespace, InvalidTrajectory
from rag_tuned_memory.formats.base import check_trajectory
from rag_tuned_memory.recall.prompt import has_injected, strip_injected
from rag_tuned_memory.trajectory import Step, Trajectory

Given = Trajectory | Mapping[str, Any]
"""A trajectory, or its fields; ``namespace`` may be left out of these."""


def take_in(namespace: str, given: Given, *, max_step_bytes: int) -> Trajectory:
    """``given`` as it is stored.

    Fenced spans that a recall put into a prompt are taken out: the memory never learns from its own echo. A trajectory
    without ``source_id`` gets its content hash as one, so that its id stays the same when feedback is added later.

    Raises:
        InvalidNamespace: it names another namespace.
        InvalidTrajectory: a field is wrong, a step is too large, or nothing is left without recalled text.
    """
    try:
        trajectory = _parsed(namespace, given)
        check_trajectory(trajectory, max_step_bytes)
    except InvalidTrajectory as error:
        error.remedy = error.remedy or "Correct it and record again; nothing was stored."
        raise
    trajectory = _without_recalled(trajectory)
    if trajectory.source_id:
        return trajectory
    return trajectory.model_copy(update={"source_id": trajectory.content_hash})


def _parsed(namespace: str, given: Given) -> Trajectory:
    if isinstance(given, Trajectory):
        own: Any = given.namespace
    elif isinstance(given, Mapping):
        own = given.get("namespace", namespace)
    else:
        raise InvalidTrajectory(
            f"a trajectory or a mapping of its fields is needed, not {type(given).__name__}",
            remedy="Give at least {'steps': [{'kind': 'message', 'text': '…'}]}.",
        )
    if own != namespace:
        raise InvalidNamespace(
            f"the trajectory belongs to namespace {own!r}, this memory is of {namespace!r}",
            place="namespace",
            remedy="Leave namespace out, or open the memory of that namespace.",
        )
    return given if isinstance(given, Trajectory) else Trajectory.parse({**given, "namespace": namespace})


def _without_recalled(trajectory: Trajectory) -> Trajectory:
    fields = trajectory.model_dump(exclude={"id", "steps"})
    steps = [_clean_step(step) for step in trajectory.steps]
    goal = strip_injected(trajectory.goal)
    if goal == trajectory.goal and all(new is old for new, old in zip(steps, trajectory.steps, strict=True)):
        return trajectory
    kept = tuple(step for step in steps if step is not None)
    if not kept:
        raise InvalidTrajectory(
            "nothing is left once recalled text is taken out", place="steps", remedy="Record what the agent did."
        )
    return Trajectory(**{**fields, "goal": goal, "steps": kept})


def _clean_step(step: Step) -> Step | None:
    """``step`` without recalled text (itself where it holds none), or None where nothing else was in it."""
    changes = {
        "text": strip_injected(step.text),
        "error": strip_injected(step.error) if step.error else step.error,
        "arguments": _clean(step.arguments),
    }
    if all(getattr(step, name) == value for name, value in changes.items()):
        return step
    text = changes["text"]
    changes["text"] = text.strip() if isinstance(text, str) else text
    cleaned = step.model_copy(update=changes)
    return cleaned if cleaned.text or cleaned.tool or cleaned.arguments or cleaned.error else None


def _clean(value: Any) -> JsonValue:
    """JSON with recalled text taken out of every string in it."""
    if isinstance(value, str):
        return strip_injected(value) if has_injected(value) else value
    if isinstance(value, Mapping):
        return {key: _clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    return value  # type: ignore[no-any-return]
