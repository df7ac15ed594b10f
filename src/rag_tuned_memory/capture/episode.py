"""An episode under way: its steps so far, in the order in which they count."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

from pydantic import JsonValue

from rag_tuned_memory.capture.steps import jsonable
from rag_tuned_memory.errors import InvalidTrajectory
from rag_tuned_memory.memory.journal import Opening
from rag_tuned_memory.memory.merging import StepKey, newest, step_key
from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory

CUT = " […cut: the whole was too large to be stored]"


class OpenEpisode:
    """Steps of a run that has not ended. Several threads may put steps at once.

    ``written`` is called with each step that is new or changed, in the order of the calls.
    """

    def __init__(
        self, opening: Opening, *, max_step_bytes: int, written: Callable[[Step], None] = lambda step: None
    ) -> None:
        self.opening = opening
        self._max_step_bytes = max_step_bytes
        self._written = written
        self._steps: dict[StepKey, Step] = {}
        self._noted: dict[str, JsonValue] = {}
        self.changes = 0
        """How often a step was new or changed."""
        self._lock = threading.Lock()

    @property
    def trajectory_id(self) -> str:
        """The id that the trajectory has in the memory."""
        return self.opening.trajectory_id

    def put(self, step: Step) -> None:
        """Add a step; one of the same kind and ``call_id`` (or ``ref``) takes the place of the earlier one.

        A step that is too large for the store is cut, and says so.

        Raises:
            InvalidTrajectory: it has neither ``call_id`` nor ``ref``, and no replay could be told apart.
        """
        key = step_key(step)
        if key is None:
            raise InvalidTrajectory(
                f"a {step.kind} step of an open episode needs call_id or ref",
                place="step",
                remedy="Give the message's id, or the tool call's.",
            )
        step = _fitting(step, self._max_step_bytes)
        with self._lock:
            known = self._steps.get(key)
            if known is None or newest(known, step) is not known:
                self._steps[key] = step
                self.changes += 1
                self._written(step)

    def note(self, metadata: Mapping[str, Any]) -> None:
        """Add to the episode's metadata. It is kept in memory until the episode is stored."""
        with self._lock:
            self._noted.update(jsonable(dict(metadata)))  # type: ignore[arg-type]

    def held(self) -> AbstractContextManager[object]:
        """Within this block no step can be put."""
        return self._lock

    def has(self, kind: StepKind, name: str) -> bool:
        """Whether a step of this kind with this ``call_id`` or ``ref`` was put."""
        return (kind, name) in self._steps

    def trajectory(self, outcome: Outcome | None = None) -> Trajectory | None:
        """What happened so far, None while nothing did."""
        with self._lock:
            steps = in_order(self._steps.values())
            opening = self.opening.model_copy(update={"metadata": {**self.opening.metadata, **self._noted}})
        if not steps:
            return None
        ended = datetime.now(UTC) if outcome is not None else None
        return Trajectory(**opening.model_dump(), steps=steps, outcome=outcome or Outcome(), ended_at=ended)


def in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps as they came, but the results of calls that ran in parallel in the order of the calls."""
    every = list(steps)
    calls = {step.call_id: place for place, step in enumerate(every) if step.kind is StepKind.TOOL_CALL}
    places = [place for place, step in enumerate(every) if step.kind is StepKind.TOOL_RESULT and step.call_id in calls]
    ordered = list(every)
    for run in _neighbours(places):
        in_run = sorted((every[place] for place in run), key=lambda step: calls[step.call_id])
        for place, step in zip(run, in_run, strict=True):
            ordered[place] = step
    return tuple(ordered)


def _neighbours(places: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _fitting(step: Step, most: int) -> Step:
    """``step`` within ``most`` bytes of JSON: text and error cut, arguments that are too large left out."""
    if _size(step) <= most:
        return step
    changes: dict[str, Any] = {}
    if step.arguments and len(step.model_dump_json(include={"arguments"}).encode()) > most // 4:
        changes["arguments"] = {"cut": CUT.strip()}
    changes["metadata"] = step.metadata if len(step.model_dump_json(include={"metadata"})) <= most // 8 else {}
    if step.error:
        changes["error"] = _cut(step.error, most // 8)
    changes["text"] = _cut(step.text, most // 8)
    return step.model_copy(update=changes)


def _cut(text: str, most: int) -> str:
    """At most ``most`` characters; a character is up to six bytes of JSON."""
    return text if len(text) <= most else text[: max(0, most - len(CUT))] + CUT


def _size(step: Step) -> int:
    return len(step.model_dump_json(exclude_defaults=True).encode())
