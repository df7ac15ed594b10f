"""The file's schema, as numbered steps: ``PRAGMA user_version`` counts the steps that a file has been through.

Add a step at the end of ``MIGRATIONS``; never change one that was released.
"""

from __future__ import annotations

import apsw

from rag_tuned_memory.errors import StoreTooNew
from rag_tuned_memory.store.sqlite.failures import corrupt
from rag_tuned_memory.store.sqlite.rows import value

APPLICATION_ID = 0x52544D65
"""Marks our files (``RTMe``), so that another program's database is refused and not written into."""


def _episodes(db: apsw.Connection) -> None:
    """Trajectories, which are the truth, and their projections: passages, vectors, bit signatures."""
    db.execute(
        """
        CREATE TABLE namespaces (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            embedder TEXT NOT NULL,
            sequence INTEGER NOT NULL DEFAULT 0
        );
        CREATE TABLE trajectories (
            id INTEGER PRIMARY KEY,
            namespace INTEGER NOT NULL REFERENCES namespaces,
            name TEXT NOT NULL,
            sequence INTEGER NOT NULL,
            recorded_at INTEGER NOT NULL,
            content_hash TEXT NOT NULL,
            source TEXT NOT NULL,
            success INTEGER,
            time INTEGER,
            json TEXT NOT NULL,
            UNIQUE (namespace, name),
            UNIQUE (namespace, sequence)
        );
        CREATE TABLE passages (
            id INTEGER PRIMARY KEY,
            namespace INTEGER NOT NULL REFERENCES namespaces,
            trajectory INTEGER NOT NULL REFERENCES trajectories,
            step INTEGER NOT NULL,
            chunk INTEGER NOT NULL,
            time INTEGER,
            tool TEXT,
            kind TEXT,
            actor TEXT,
            ref TEXT,
            text TEXT NOT NULL,
            indexed TEXT NOT NULL,
            UNIQUE (trajectory, step, chunk)
        );
        CREATE INDEX passages_filter ON passages (namespace, tool, time, trajectory);
        CREATE TABLE vectors (
            passage INTEGER PRIMARY KEY REFERENCES passages,
            vector BLOB NOT NULL
        );
        CREATE TABLE signatures (
            namespace INTEGER NOT NULL,
            passage INTEGER NOT NULL REFERENCES passages,
            bits BLOB NOT NULL,
            PRIMARY KEY (namespace, passage)
        ) WITHOUT ROWID;
        CREATE INDEX signatures_passage ON signatures (passage);
        CREATE TABLE meta (
            namespace TEXT NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            PRIMARY KEY (namespace, key)
        ) WITHOUT ROWID;
        """
    )
    db.pragma("application_id", APPLICATION_ID)


MIGRATIONS = (_episodes,)


def inspect(db: apsw.Connection, path: str) -> None:
    """Refuse a file that is not ours, before anything is written to it.

    Raises:
        StoreTooNew: a newer version of this package wrote it.
        StoreCorrupt: it is some other SQLite database.
    """
    version, application = db.pragma("user_version"), db.pragma("application_id")
    empty = not value(db, "SELECT EXISTS (SELECT 1 FROM sqlite_schema)")
    if application != APPLICATION_ID and not (empty and version == 0):
        raise corrupt(path, "the file is a SQLite database, but not an episode store")
    if version > len(MIGRATIONS):
        raise StoreTooNew(
            f"the file has schema version {version}, this package knows up to {len(MIGRATIONS)}",
            place=path,
            remedy="Upgrade: pip install --upgrade rag-tuned-memory.",
        )


def migrate(db: apsw.Connection) -> None:
    """Bring the file up to date; processes that do so at the same time wait for each other."""
    if db.pragma("user_version") >= len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for number in range(db.pragma("user_version"), len(MIGRATIONS)):
            MIGRATIONS[number](db)
            db.pragma("user_version", number + 1)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def text_index(namespace: int) -> str:
    """The name of a namespace's full-text index.

    One index a namespace, because FTS5 computes BM25 from the statistics of the whole index: in a shared one, a
    tenant's records would change another tenant's ranking.
    """
    return f"text_{namespace:d}"


def create_text_index(db: apsw.Connection, namespace: int) -> None:
    """Make the full-text index of a new namespace.

    It keeps no copy of the text (its content is a view of ``passages``), and ``secure-delete`` takes a deleted
    passage's words out of the index at once.
    """
    name = text_index(namespace)
    db.execute(f"CREATE VIEW {name}_content AS SELECT id, indexed FROM passages WHERE namespace = {namespace:d}")
    db.execute(
        f"CREATE VIRTUAL TABLE {name} USING fts5 "
        f"(indexed, content='{name}_content', content_rowid='id', tokenize='porter unicode61')"
    )
    db.execute(f"INSERT INTO {name} ({name}, rank) VALUES ('secure-delete', 1)")
