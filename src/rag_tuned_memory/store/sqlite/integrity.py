"""Looking for damage: in SQLite's pages, in the text indexes, between the truth and its projections."""

from __future__ import annotations

from collections.abc import Iterator

import apsw
from pydantic import ValidationError

from rag_tuned_memory.store.checks import REINDEX, RESTORE
from rag_tuned_memory.store.sqlite.migrations import text_index
from rag_tuned_memory.store.sqlite.rows import rows, value
from rag_tuned_memory.trajectory import Trajectory

_BETWEEN_TABLES = {
    "passages without a vector": "SELECT count(*) FROM passages WHERE id NOT IN (SELECT passage FROM vectors)",
    "vectors without a passage": "SELECT count(*) FROM vectors WHERE passage NOT IN (SELECT id FROM passages)",
    "passages without a signature": "SELECT count(*) FROM passages p WHERE NOT EXISTS"
    " (SELECT 1 FROM signatures s WHERE s.namespace = p.namespace AND s.passage = p.id)",
    "signatures without a passage": "SELECT count(*) FROM signatures s WHERE NOT EXISTS"
    " (SELECT 1 FROM passages p WHERE p.namespace = s.namespace AND p.id = s.passage)",
    "passages without a trajectory": "SELECT count(*) FROM passages p WHERE NOT EXISTS"
    " (SELECT 1 FROM trajectories t WHERE t.namespace = p.namespace AND t.id = p.trajectory)",
}


def problems(db: apsw.Connection, path: str) -> Iterator[str]:
    """Each problem as a sentence with its remedy. Holds the write lock: the text indexes are checked by a command."""
    damaged = [text for (text,) in rows(db, "PRAGMA integrity_check(10)") if text != "ok"]
    if damaged:
        yield f"{path}: SQLite finds damage: {'; '.join(damaged)}. {RESTORE}"
        return
    for what, query in _BETWEEN_TABLES.items():
        count = value(db, query)
        if count:
            yield f"{path}: {count} {what}. {REINDEX}"
    for number, name in list(rows(db, "SELECT id, name FROM namespaces ORDER BY name")):
        yield from _text_index_problems(db, number, f"{path}: namespace {name!r}")
        yield from _trajectory_problems(db, number, name, f"{path}: namespace {name!r}")


def _text_index_problems(db: apsw.Connection, namespace: int, place: str) -> Iterator[str]:
    index = text_index(namespace)
    try:
        # rank 1: also compare the index with the text that it was made from
        db.execute(f"INSERT INTO {index} ({index}, rank) VALUES ('integrity-check', 1)")
        count = value(db, f"SELECT (SELECT count(*) FROM {index}_docsize) - (SELECT count(*) FROM {index}_content)")
    except apsw.Error as error:
        yield f"{place}: the text index differs from the passages ({error}). {REINDEX}"
        return
    if count:
        yield f"{place}: the text index has {count:+d} passages. {REINDEX}"


def _trajectory_problems(db: apsw.Connection, namespace: int, name: str, place: str) -> Iterator[str]:
    stored = rows(db, "SELECT name, json, content_hash FROM trajectories WHERE namespace = ?", (namespace,))
    for trajectory_id, text, content_hash in stored:
        try:
            found = Trajectory.model_validate_json(text)
        except ValidationError:
            yield f"{place}: trajectory {trajectory_id} cannot be read. {RESTORE}"
            continue
        if (found.namespace, found.id, found.content_hash) != (name, trajectory_id, content_hash):
            yield f"{place}: trajectory {trajectory_id} differs from its checksum. {RESTORE}"
