"""The embedded episode store: one SQLite file (apsw, FTS5, sqlite-vec)."""

from rag_tuned_memory.store.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
