"""Making the projections of a namespace anew: passages, vectors, signatures and text index, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from rag_tuned_memory.embedding.base import EmbedderIdentity
from rag_tuned_memory.store.base import Projection
from rag_tuned_memory.store.sqlite.migrations import create_text_index, text_index
from rag_tuned_memory.store.sqlite.rows import rows, value
from rag_tuned_memory.store.sqlite.writing import encoded, write_passages


def rebuild(
    db: apsw.Connection, namespace: str, projections: Sequence[Projection], embedder: EmbedderIdentity
) -> list[str]:
    """Replace all projections of a namespace; see ``EpisodeStore.rebuild``."""
    number = value(db, "SELECT id FROM namespaces WHERE name = ?", (namespace,))
    if number is None:
        return []
    given = {one.trajectory_id: one for one in projections}
    stored = list(rows(db, "SELECT id, name, content_hash FROM trajectories WHERE namespace = ?", (number,)))
    stale = [name for _, name, content in stored if name not in given or given[name].content_hash != content]
    if stale:
        return stale
    _clear(db, number)
    db.execute("UPDATE namespaces SET embedder = ? WHERE id = ?", (embedder.model_dump_json(), number))
    for trajectory, name, _ in stored:
        one = given[name]
        write_passages(db, number, trajectory, encoded(name, one.passages, one.vectors, embedder))
    return []


def _clear(db: apsw.Connection, namespace: int) -> None:
    """Drop a namespace's projections, and what damage has left without an owner in any."""
    index = text_index(namespace)
    db.execute(f"DROP TABLE IF EXISTS {index}")
    db.execute(f"DROP VIEW IF EXISTS {index}_content")
    db.execute("DELETE FROM signatures WHERE namespace = ?", (namespace,))
    db.execute("DELETE FROM vectors WHERE passage IN (SELECT id FROM passages WHERE namespace = ?)", (namespace,))
    db.execute("DELETE FROM passages WHERE namespace = ?", (namespace,))
    db.execute("DELETE FROM signatures WHERE passage NOT IN (SELECT id FROM passages)")
    db.execute("DELETE FROM vectors WHERE passage NOT IN (SELECT id FROM passages)")
    create_text_index(db, namespace)
