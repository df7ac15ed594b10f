"""Recording and removing trajectories, with all that is derived from them, inside the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import apsw

from rag_tuned_memory.embedding.base import EmbedderIdentity, Vectors
from rag_tuned_memory.store.base import Passage
from rag_tuned_memory.store.checks import checked_passages, mismatch
from rag_tuned_memory.store.sqlite.migrations import create_text_index, text_index
from rag_tuned_memory.store.sqlite.rows import (
    PASSAGE_COLUMNS,
    passage_columns,
    rows,
    signatures,
    value,
)
from rag_tuned_memory.store.values import microseconds
from rag_tuned_memory.trajectory import Trajectory

_Columns = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """A trajectory made ready for writing: everything checked and serialised before the lock is taken."""

    trajectory: Trajectory
    content_hash: str
    json: str
    passages: dict[_Columns, tuple[bytes, bytes]]
    """The columns of each passage, with its vector and signature."""
    embedder: EmbedderIdentity


def prepare(
    trajectory: Trajectory, passages: Sequence[Passage], vectors: Vectors, embedder: EmbedderIdentity
) -> Record:
    """Check and serialise.

    Raises:
        InvalidVector: NaN, infinity or another shape.
        InvalidInput: a passage of another trajectory, two passages with the same key, or text that is not UTF-8.
    """
    return Record(
        trajectory=trajectory,
        content_hash=trajectory.content_hash,
        json=trajectory.model_dump_json(),
        passages=encoded(trajectory.id, passages, vectors, embedder),
        embedder=embedder,
    )


def encoded(
    trajectory_id: str, passages: Sequence[Passage], vectors: Vectors, embedder: EmbedderIdentity
) -> dict[_Columns, tuple[bytes, bytes]]:
    """The columns of each passage, with its vector and signature. Raises as ``prepare`` does."""
    array = checked_passages(trajectory_id, passages, vectors, embedder)
    blobs = zip((row.tobytes() for row in array), (row.tobytes() for row in signatures(array)), strict=True)
    return dict(zip(map(passage_columns, passages), blobs, strict=True))


def put(db: apsw.Connection, record: Record, path: str, *, after: int = 0) -> bool:
    """Write a record; returns whether anything changed.

    Raises:
        EmbedderMismatch: the namespace holds vectors of another embedder.
    """
    namespace = _namespace(db, record.trajectory.namespace, record.embedder, path)
    stored = value(
        db,
        "SELECT id, content_hash FROM trajectories WHERE namespace = ? AND name = ?",
        (namespace, record.trajectory.id),
    )
    if stored and stored[1] == record.content_hash:
        return False
    trajectory = _write_trajectory(db, namespace, record, after)
    write_passages(db, namespace, trajectory, record.passages)
    return True


def _namespace(db: apsw.Connection, name: str, embedder: EmbedderIdentity, path: str) -> int:
    """The number of a namespace, made if it is new; checks that its vectors are this embedder's."""
    wanted = embedder.model_dump_json()
    row = value(db, "SELECT id, embedder FROM namespaces WHERE name = ?", (name,))
    if row is None:
        number: int = value(db, "INSERT INTO namespaces (name, embedder) VALUES (?, ?) RETURNING id", (name, wanted))
        create_text_index(db, number)
        return number
    number, stored = row
    if stored == wanted:
        return number
    if value(db, "SELECT EXISTS (SELECT 1 FROM passages WHERE namespace = ?)", (number,)):
        have = EmbedderIdentity.model_validate_json(stored)
        raise mismatch(name, have, embedder, path)
    db.execute("UPDATE namespaces SET embedder = ? WHERE id = ?", (wanted, number))
    return number


def _write_trajectory(db: apsw.Connection, namespace: int, record: Record, after: int) -> int:
    sequence = value(
        db,
        "UPDATE namespaces SET sequence = max(sequence, ?) + 1 WHERE id = ? RETURNING sequence",
        (after, namespace),
    )
    success = record.trajectory.outcome.success
    columns = {
        "namespace": namespace,
        "name": record.trajectory.id,
        "sequence": sequence,
        "recorded_at": microseconds(datetime.now(UTC)),
        "content_hash": record.content_hash,
        "source": record.trajectory.source,
        "success": None if success is None else int(success),
        "time": microseconds(record.trajectory.time),
        "json": record.json,
    }
    trajectory: int = value(
        db,
        """
        INSERT INTO trajectories
            (namespace, name, sequence, recorded_at, content_hash, source, success, time, json)
        VALUES (:namespace, :name, :sequence, :recorded_at, :content_hash, :source, :success, :time, :json)
        ON CONFLICT (namespace, name) DO UPDATE SET
            sequence = excluded.sequence, recorded_at = excluded.recorded_at, content_hash = excluded.content_hash,
            source = excluded.source, success = excluded.success, time = excluded.time, json = excluded.json
        RETURNING id
        """,
        columns,
    )
    return trajectory


def write_passages(
    db: apsw.Connection, namespace: int, trajectory: int, wanted: dict[_Columns, tuple[bytes, bytes]]
) -> None:
    """Make the stored passages the wanted ones.

    Equal ones stay as they are: a trajectory that grows by a step costs one passage, not all of them anew.
    """
    found = rows(
        db,
        f"SELECT p.id, v.vector, {PASSAGE_COLUMNS} FROM passages p LEFT JOIN vectors v ON v.passage = p.id"
        " WHERE p.trajectory = ?",
        (trajectory,),
    )
    stored = {tuple(columns): (number, vector) for number, vector, *columns in found}
    kept = {key for key, (_, vector) in stored.items() if key in wanted and wanted[key][0] == vector}
    _remove_passages(db, namespace, [number for key, (number, _) in stored.items() if key not in kept])
    index = text_index(namespace)
    for columns, (vector, bits) in wanted.items():
        if columns in kept:
            continue
        number = value(
            db,
            "INSERT INTO passages"
            " (namespace, trajectory, step, chunk, time, tool, kind, actor, ref, text, indexed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (namespace, trajectory, *columns),
        )
        db.execute("INSERT INTO vectors (passage, vector) VALUES (?, ?)", (number, vector))
        db.execute("INSERT INTO signatures (namespace, passage, bits) VALUES (?, ?, ?)", (namespace, number, bits))
        db.execute(f"INSERT INTO {index} (rowid, indexed) VALUES (?, ?)", (number, columns[-1]))


def _remove_passages(db: apsw.Connection, namespace: int, numbers: Sequence[int]) -> None:
    given = json.dumps(list(numbers))
    # the text index reads the old text from `passages`, so its entries go first
    db.execute(f"DELETE FROM {text_index(namespace)} WHERE rowid IN (SELECT value FROM json_each(?))", (given,))
    db.execute(
        "DELETE FROM signatures WHERE namespace = ? AND passage IN (SELECT value FROM json_each(?))",
        (namespace, given),
    )
    db.execute("DELETE FROM vectors WHERE passage IN (SELECT value FROM json_each(?))", (given,))
    db.execute("DELETE FROM passages WHERE id IN (SELECT value FROM json_each(?))", (given,))


def delete(db: apsw.Connection, namespace: str, trajectory_ids: Sequence[str]) -> list[str]:
    """Remove trajectories, each named once, with all derived from them; returns the ids that were there, in order."""
    number = value(db, "SELECT id FROM namespaces WHERE name = ?", (namespace,))
    removed = []
    for name in trajectory_ids:
        trajectory = value(db, "SELECT id FROM trajectories WHERE namespace = ? AND name = ?", (number, name))
        if trajectory is None:
            continue
        found = rows(db, "SELECT id FROM passages WHERE trajectory = ?", (trajectory,))
        _remove_passages(db, number, [passage for (passage,) in found])
        db.execute("DELETE FROM trajectories WHERE id = ?", (trajectory,))
        removed.append(name)
    return removed


def drop_namespace(db: apsw.Connection, namespace: str) -> None:
    """Remove all that a namespace holds. Its number stays, and the sequence that its writes have reached."""
    named = rows(
        db,
        "SELECT trajectories.name FROM trajectories JOIN namespaces ON namespaces.id = namespace"
        " WHERE namespaces.name = ?",
        (namespace,),
    )
    delete(db, namespace, [name for (name,) in named])
    db.execute("DELETE FROM meta WHERE namespace = ?", (namespace,))


def set_meta(db: apsw.Connection, namespace: str, key: str, text: str | None) -> None:
    """Keep a text under a namespace's key; None removes it."""
    if text is None:
        db.execute("DELETE FROM meta WHERE namespace = ? AND key = ?", (namespace, key))
        return
    db.execute("INSERT OR REPLACE INTO meta (namespace, key, value) VALUES (?, ?, ?)", (namespace, key, text))
