"""Connections to the file: one writer and a few readers, handed out one thread at a time."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import sqlite_vec

from rag_tuned_memory.errors import StoreError
from rag_tuned_memory.store.sqlite.failures import translated
from rag_tuned_memory.store.sqlite.migrations import inspect, migrate

MEMORY = ":memory:"
_PAGE_BYTES = 8192
"""Five vectors of 384 dimensions fill a page of 8 KiB, two one of 4 KiB: a quarter of the file is saved."""
_CACHE_KIBIBYTES = 32_000
_MAPPED_BYTES = 1 << 30
"""Readers map the file: a scan of 100,000 passages takes half the time of one that copies each page."""
_MOST_PAGES = 0xFFFFFFFE


class _Patience:
    """Waits for a lock in short, uneven naps.

    SQLite's own busy timeout naps for up to 100 ms, during which a process that writes without pause has taken the
    lock again many times; with short naps each waiting process gets its turn.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = 0.0

    def __call__(self, calls_before: int) -> bool:
        if calls_before == 0:
            self._deadline = time.monotonic() + self._seconds
        if time.monotonic() >= self._deadline:
            return False
        time.sleep(random.uniform(0.0002, 0.002))
        return True


def _connect(path: str, busy_timeout: float) -> apsw.Connection:
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_NOMUTEX
    db = apsw.Connection(path, flags=flags)
    try:
        db.set_busy_handler(_Patience(busy_timeout))
        db.enable_load_extension(True)
        db.load_extension(sqlite_vec.loadable_path())
        db.enable_load_extension(False)
        db.pragma("cache_size", -_CACHE_KIBIBYTES)
    except BaseException:
        db.close()
        raise
    return db


def open_writer(path: str, *, busy_timeout: float) -> apsw.Connection:
    """Open the file for writing: create it if need be, refuse foreign ones, migrate.

    Raises:
        StoreCorrupt, StoreTooNew, apsw.Error
    """
    if path != MEMORY:
        _make_folder(path)
    db = _connect(path, busy_timeout)
    try:
        inspect(db, path)
        db.pragma("page_size", _PAGE_BYTES)
        _use_wal(db, busy_timeout)
        db.pragma("synchronous", "FULL")
        db.pragma("foreign_keys", True)
        db.pragma("secure_delete", True)
        migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def open_reader(path: str, *, busy_timeout: float) -> apsw.Connection:
    """Open the file for reading; a writer must have opened it before."""
    db = _connect(path, busy_timeout)
    db.pragma("query_only", True)
    db.pragma("mmap_size", _MAPPED_BYTES)
    return db


def _make_folder(path: str) -> None:
    folder = Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "Make it by hand, or name another store with RTM_STORE."
        raise StoreError(f"the folder cannot be made ({error.strerror})", place=str(folder), remedy=remedy) from error


def _use_wal(db: apsw.Connection, busy_timeout: float) -> None:
    """Switch to write-ahead logging.

    SQLite does not call its busy handler while two processes switch at the same time, so the waiting is done here.
    """
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            db.pragma("journal_mode", "WAL")
            return
        except apsw.BusyError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.01)


class Pool:
    """Hands out connections to threads. They are opened when first needed, the writer always first.

    A database in memory has one connection only, which serves readers too.
    """

    def __init__(self, path: str, *, readers: int, busy_timeout: float, max_bytes: int | None) -> None:
        self.path = path
        self._busy_timeout = busy_timeout
        self._max_bytes = max_bytes
        self._writing = threading.Lock()
        self._opening = threading.Lock()
        """Held while the writer is opened, and no longer: a reader that needs it open does not wait for a write."""
        self._writer: apsw.Connection | None = None
        self._reading = threading.BoundedSemaphore(readers)
        self._readers = readers
        self._idle: list[apsw.Connection] = []
        self._closed = False
        self._process = os.getpid()

    @contextmanager
    def writer(self, *, bounded: bool = True) -> Iterator[apsw.Connection]:
        """The connection that writes, inside one transaction that commits when the block ends.

        ``bounded=False`` lets this transaction exceed ``max_bytes``: deleting may need a page before it frees many.
        """
        with translated(self.path), self._writing:
            connection = self._open_writer()
            self._bound(connection, bounded)
            with _transaction(connection, "BEGIN IMMEDIATE") as db:
                yield db

    @contextmanager
    def reader(self) -> Iterator[apsw.Connection]:
        """A connection that reads one snapshot of the database during the block."""
        with translated(self.path):
            if self.path == MEMORY:
                with self._writing, _transaction(self._open_writer(), "BEGIN") as db:
                    yield db
                return
            with self._reading:
                connection = self._take_reader()
                try:
                    with _transaction(connection, "BEGIN") as db:
                        yield db
                finally:
                    self._idle.append(connection)

    def checkpoint(self) -> None:
        """Move the log into the file and empty it, as far as readers allow without waiting."""
        with translated(self.path), self._writing:
            db = self._open_writer()
            db.set_busy_handler(None)
            try:
                db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except apsw.BusyError:
                pass  # the next checkpoint does it
            finally:
                db.set_busy_handler(_Patience(self._busy_timeout))

    def close(self) -> None:
        """Close every connection once its work is done; closing twice is allowed."""
        for _ in range(self._readers):
            self._reading.acquire()
        try:
            with translated(self.path), self._writing:
                self._closed = True
                while self._idle:
                    self._idle.pop().close()
                if self._writer is not None:
                    self._writer.close()
                    self._writer = None
        finally:
            self._reading.release(self._readers)

    def _take_reader(self) -> apsw.Connection:
        self._check_usable()
        try:
            return self._idle.pop()
        except IndexError:
            self._open_writer()  # which makes the file
            return open_reader(self.path, busy_timeout=self._busy_timeout)

    def _open_writer(self) -> apsw.Connection:
        self._check_usable()
        with self._opening:
            if self._writer is None:
                self._writer = open_writer(self.path, busy_timeout=self._busy_timeout)
            return self._writer

    def _bound(self, db: apsw.Connection, bounded: bool) -> None:
        if self._max_bytes is not None:
            pages = max(1, self._max_bytes // db.pragma("page_size")) if bounded else _MOST_PAGES
            db.pragma("max_page_count", pages)

    def _check_usable(self) -> None:
        if self._closed:
            raise StoreError("the store was closed", place=self.path, remedy="Open it again with open_store().")
        if self._process != os.getpid():
            remedy = "Open the store in the process that uses it: SQLite connections do not survive a fork."
            raise StoreError("the store was opened before this process was forked", place=self.path, remedy=remedy)


@contextmanager
def _transaction(db: apsw.Connection, begin: str) -> Iterator[apsw.Connection]:
    db.execute(begin)
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors (a full disk)
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
