"""How trajectories and passages are written to Weaviate's properties, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rag_tuned_memory.errors import StoreCorrupt
from rag_tuned_memory.store.base import Heading, Passage, StoredTrajectory
from rag_tuned_memory.store.checks import RESTORE
from rag_tuned_memory.store.values import microseconds, moment
from rag_tuned_memory.store.weaviate.analysis import indexed_terms
from rag_tuned_memory.trajectory import Outcome, StepKind, Trajectory, describe

Properties = dict[str, Any]

WHOLE = ["json", "sequence", "recorded_at", "content_hash", "trajectory_id"]
"""The properties that ``stored_trajectory`` reads."""
HEADING = ["trajectory_id", "goal", "outcome", "time", "source", "content_hash"]
"""The properties that ``heading`` reads."""
_EXACT = 2**53
"""Whole numbers beyond this lose digits on the wire."""


def trajectory_properties(trajectory: Trajectory) -> Properties:
    """What a trajectory itself says; the write adds when and how it was stored."""
    text = trajectory.model_dump_json()
    properties = {
        "trajectory_id": trajectory.id,
        "namespace": trajectory.namespace,
        "content_hash": trajectory.content_hash,
        "source": trajectory.source,
        "success": trajectory.outcome.success,
        "time": _number(microseconds(trajectory.time)),
        "goal": trajectory.goal,
        "outcome": trajectory.outcome.model_dump_json(),
        "json": text,
        "bytes": len(text.encode()),
    }
    return _present(properties)


def passage_properties(passage: Passage, trajectory: Trajectory, generation: str) -> Properties:
    """A passage with what filters need of its trajectory. ``payload`` holds it whole; the rest is for finding it."""
    payload = json.dumps(
        [
            passage.step,
            passage.chunk,
            None if passage.kind is None else passage.kind.value,
            passage.text,
            passage.indexed,
            passage.actor,
            passage.tool,
            passage.ref,
            microseconds(passage.time),
        ],
        ensure_ascii=False,
    )
    properties = {
        "trajectory_id": passage.trajectory_id,
        "generation": generation,
        "source": trajectory.source,
        "success": trajectory.outcome.success,
        "tool": passage.tool,
        "kind": None if passage.kind is None else passage.kind.value,
        "time": _number(microseconds(passage.time or trajectory.time)),
        "step": passage.step,
        "chunk": passage.chunk,
        "terms": indexed_terms(passage.indexed),
        "bytes": len(payload.encode()),
        "payload": payload,
    }
    return _present(properties)


def passage(properties: Mapping[str, Any]) -> Passage:
    """The inverse of ``passage_properties``."""
    step, chunk, kind, text, indexed, actor, tool, ref, time = json.loads(properties["payload"])
    return Passage(
        trajectory_id=properties["trajectory_id"],
        step=step,
        chunk=chunk,
        kind=None if kind is None else StepKind(kind),
        text=text,
        indexed=indexed,
        actor=actor,
        tool=tool,
        ref=ref,
        time=moment(time),
    )


def stored_trajectory(properties: Mapping[str, Any], place: str) -> StoredTrajectory:
    """Raises StoreCorrupt where what is stored cannot be read."""
    try:
        trajectory = Trajectory.model_validate_json(properties["json"])
    except ValidationError as error:
        raise _corrupt(properties, place, describe(error)) from error
    recorded_at = moment(int(properties["recorded_at"]))
    assert recorded_at is not None
    return StoredTrajectory(trajectory, int(properties["sequence"]), recorded_at, properties["content_hash"])


def heading(properties: Mapping[str, Any], place: str) -> Heading:
    """Raises StoreCorrupt where the outcome cannot be read."""
    try:
        outcome = Outcome.model_validate_json(properties["outcome"])
    except ValidationError as error:
        raise _corrupt(properties, place, describe(error)) from error
    time = properties.get("time")
    return Heading(
        trajectory_id=properties["trajectory_id"],
        goal=properties.get("goal") or "",
        outcome=outcome,
        time=moment(None if time is None else int(time)),
        source=properties["source"],
        content_hash=properties["content_hash"],
    )


def _corrupt(properties: Mapping[str, Any], place: str, why: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"trajectory {properties.get('trajectory_id')} cannot be read ({why})",
        place=place,
        remedy=RESTORE,
    )


def _number(value: int | None) -> int | None:
    return None if value is None else max(-_EXACT, min(_EXACT, value))


def _present(properties: Properties) -> Properties:
    return {name: value for name, value in properties.items() if value is not None}
