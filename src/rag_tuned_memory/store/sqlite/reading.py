"""Reading trajectories and what a namespace holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import apsw
import numpy as np
from pydantic import ValidationError

from rag_tuned_memory.embedding.base import EmbedderIdentity
from rag_tuned_memory.store.base import Filter, Heading, Passage, Projection, StoredTrajectory, StoreStats
from rag_tuned_memory.store.checks import not_found
from rag_tuned_memory.store.sqlite import filters
from rag_tuned_memory.store.sqlite.failures import corrupt
from rag_tuned_memory.store.sqlite.rows import PASSAGE_COLUMNS, passage, rows, value
from rag_tuned_memory.store.values import moment
from rag_tuned_memory.trajectory import Outcome, StepKind, Trajectory, describe

_COLUMNS = "t.name, t.json, t.sequence, t.recorded_at, t.content_hash"


def _stored(path: str, columns: tuple[Any, ...]) -> StoredTrajectory:
    name, text, sequence, recorded_at, content_hash = columns
    try:
        trajectory = Trajectory.model_validate_json(text)
    except ValidationError as error:
        raise corrupt(path, f"trajectory {name} cannot be read ({describe(error)})") from error
    recorded = moment(recorded_at)
    assert recorded is not None
    return StoredTrajectory(trajectory, sequence, recorded, content_hash)


def get(db: apsw.Connection, path: str, namespace: str, trajectory_id: str) -> StoredTrajectory:
    """Raises TrajectoryNotFound, or StoreCorrupt where the stored text cannot be read."""
    row = value(
        db,
        f"SELECT {_COLUMNS} FROM trajectories t JOIN namespaces n ON n.id = t.namespace"
        " WHERE n.name = ? AND t.name = ?",
        (namespace, trajectory_id),
    )
    if row is None:
        raise not_found(namespace, trajectory_id, path)
    return _stored(path, row)


def page(
    db: apsw.Connection, path: str, namespace: str, *, after: int, where: Filter, size: int
) -> list[StoredTrajectory]:
    """Up to ``size`` trajectories with ``sequence > after``, in order of sequence.

    A condition on single passages (time, tool) keeps the trajectories with a passage that meets it.
    """
    whole, parameters = filters.of_trajectory(where)
    own, own_values = filters.of_passage(where)
    some = f" AND EXISTS (SELECT 1 FROM passages p WHERE p.trajectory = t.id{own})" if own else ""
    found = rows(
        db,
        f"SELECT {_COLUMNS} FROM trajectories t WHERE t.namespace = (SELECT id FROM namespaces WHERE name = :name)"
        f" AND t.sequence > :after{whole}{some} ORDER BY t.sequence LIMIT :size",
        parameters | own_values | {"name": namespace, "after": after, "size": size},
    )
    return [_stored(path, row) for row in found]


def passages(db: apsw.Connection, namespace: str, trajectory_id: str) -> list[Passage]:
    """All passages of one trajectory in reading order."""
    found = rows(
        db,
        f"SELECT {PASSAGE_COLUMNS} FROM passages p JOIN trajectories t ON t.id = p.trajectory"
        " JOIN namespaces n ON n.id = t.namespace WHERE n.name = ? AND t.name = ? ORDER BY p.step, p.chunk",
        (namespace, trajectory_id),
    )
    return [passage(trajectory_id, row) for row in found]


def projection(db: apsw.Connection, path: str, namespace: str, trajectory_id: str) -> Projection:
    """All passages of one trajectory in reading order, with their vectors. Raises TrajectoryNotFound."""
    content_hash = get(db, path, namespace, trajectory_id).content_hash
    identity = embedder(db, namespace)
    found = list(
        rows(
            db,
            f"SELECT v.vector, {PASSAGE_COLUMNS} FROM passages p JOIN trajectories t ON t.id = p.trajectory"
            " JOIN namespaces n ON n.id = t.namespace JOIN vectors v ON v.passage = p.id"
            " WHERE n.name = ? AND t.name = ? ORDER BY p.step, p.chunk",
            (namespace, trajectory_id),
        )
    )
    vectors = np.frombuffer(b"".join(row[0] for row in found), dtype="<f4")
    return Projection(
        trajectory_id,
        content_hash,
        [passage(trajectory_id, columns) for _, *columns in found],
        vectors.reshape(len(found), identity.dimension if identity else 0),
    )


def headings(db: apsw.Connection, path: str, namespace: str, trajectory_ids: Sequence[str]) -> dict[str, Heading]:
    """Headings by trajectory id, read from the stored JSON without building the trajectory."""
    found = rows(
        db,
        "SELECT t.name, t.json ->> 'goal', t.json -> 'outcome', t.time, t.source, t.content_hash FROM json_each(?) j"
        " CROSS JOIN trajectories t ON t.name = j.value"
        " AND t.namespace = (SELECT id FROM namespaces WHERE name = ?)",
        (json.dumps(sorted(set(trajectory_ids))), namespace),
    )
    try:
        return {
            name: Heading(name, goal or "", Outcome.model_validate_json(outcome or "{}"), moment(time), source, hashed)
            for name, goal, outcome, time, source, hashed in found
        }
    except ValidationError as error:
        raise corrupt(path, f"the outcome of a trajectory cannot be read ({describe(error)})") from error


def embedder(db: apsw.Connection, namespace: str) -> EmbedderIdentity | None:
    """Whose vectors the namespace holds; None while it holds none."""
    found = value(
        db,
        "SELECT embedder FROM namespaces n WHERE name = ?"
        " AND EXISTS (SELECT 1 FROM passages p WHERE p.namespace = n.id)",
        (namespace,),
    )
    return None if found is None else EmbedderIdentity.model_validate_json(found)


def namespaces(db: apsw.Connection) -> list[str]:
    """Namespaces that hold a trajectory, sorted."""
    found = rows(
        db, "SELECT name FROM namespaces n WHERE EXISTS (SELECT 1 FROM trajectories t WHERE t.namespace = n.id)"
    )
    return sorted(name for (name,) in found)


def stats(db: apsw.Connection, namespace: str) -> StoreStats:
    """Counts and times; ``bytes`` is the size of trajectories, texts and vectors; ``tools`` counts tool calls."""
    number = value(db, "SELECT id FROM namespaces WHERE name = ?", (namespace,))
    count, successes, failures, first, last, recorded_at, size = value(
        db,
        "SELECT count(*), coalesce(sum(success = 1), 0), coalesce(sum(success = 0), 0), min(time), max(time),"
        " max(recorded_at), coalesce(sum(octet_length(json)), 0) FROM trajectories WHERE namespace = ?",
        (number,),
    )
    texts, text_bytes = value(
        db,
        "SELECT count(*), coalesce(sum(octet_length(text) + octet_length(indexed)), 0)"
        " FROM passages WHERE namespace = ?",
        (number,),
    )
    vector_bytes = value(
        db, "SELECT coalesce(sum(octet_length(bits) * 33), 0) FROM signatures WHERE namespace = ?", (number,)
    )
    sources = rows(
        db, "SELECT source, count(*) FROM trajectories WHERE namespace = ? GROUP BY source ORDER BY source", (number,)
    )
    tools = rows(
        db,
        "SELECT tool, count(*) FROM passages WHERE namespace = ? AND tool IS NOT NULL AND kind = ? AND chunk = 0"
        " GROUP BY tool ORDER BY tool",
        (number, StepKind.TOOL_CALL.value),
    )
    return StoreStats(
        trajectories=count,
        passages=texts,
        successes=successes,
        failures=failures,
        first_time=moment(first),
        last_time=moment(last),
        recorded_at=moment(recorded_at),
        bytes=size + text_bytes + vector_bytes,
        sources=dict(sources),
        tools=dict(tools),
    )


def get_meta(db: apsw.Connection, namespace: str, key: str) -> str | None:
    """The value of a namespace's key, if any."""
    found: str | None = value(db, "SELECT value FROM meta WHERE namespace = ? AND key = ?", (namespace, key))
    return found
