"""Turns what SQLite reports into this package's errors, each with the file and a remedy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from rag_tuned_memory.errors import (
    InvalidInput,
    RagTunedMemoryError,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
)

_RESTORE = (
    "Move the file (with its -wal and -shm files, if any) away, then put a backup in its place, "
    "or import the raw histories again with `rtm import`."
)
_FREE_SPACE = "Free some space and try again; the write was rolled back, everything stored before is intact."
_NEARLY_FULL_BYTES = 1 << 20


def corrupt(path: str, what: str) -> StoreCorrupt:
    """The error for a damaged file."""
    return StoreCorrupt(what, place=path, remedy=_RESTORE)


def translate(error: apsw.Error, path: str) -> RagTunedMemoryError:
    """The error of this package that says what ``error`` means for the store at ``path``."""
    if isinstance(error, apsw.CorruptError):
        return corrupt(path, f"the database file is damaged ({error})")
    if isinstance(error, apsw.NotADBError):
        return corrupt(path, "the file is not a SQLite database")
    if isinstance(error, apsw.FullError) or (isinstance(error, apsw.IOError) and _nearly_full(path)):
        return StoreFull("no space is left to write", place=path, remedy=_FREE_SPACE)
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        remedy = "Try again, or end the process that holds it; a longer busy_timeout waits longer."
        return StoreBusy("another process holds the database's lock", place=path, remedy=remedy)
    if isinstance(error, apsw.ReadOnlyError):
        remedy = "Give this user write permission to the file and its folder, or name another store with RTM_STORE."
        return StoreError("the database cannot be written to", place=path, remedy=remedy)
    if isinstance(error, apsw.CantOpenError | apsw.PermissionsError | apsw.AuthError):
        remedy = "Check that its folder exists and may be written to, and that the path is not a folder."
        return StoreError("the database file cannot be opened", place=path, remedy=remedy)
    if isinstance(error, apsw.IOError):
        remedy = "Check the disk; what was acknowledged before is kept."
        return StoreError(f"reading or writing the file failed ({error})", place=path, remedy=remedy)
    if isinstance(error, apsw.TooBigError):
        return InvalidInput("a value is larger than SQLite can hold (1 GB)", place=path)
    return StoreError(f"SQLite reports: {error}", place=path, remedy="Run `rtm doctor` to check the file.")


def _nearly_full(path: str) -> bool:
    """Whether an I/O error is want of space: SQLite reports a full disk under its shared-memory file as I/O error."""
    try:
        return shutil.disk_usage(Path(path).parent).free < _NEARLY_FULL_BYTES
    except OSError:
        return False


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Raise errors of this package where the block raises errors of apsw."""
    try:
        yield
    except apsw.Error as error:
        raise translate(error, path) from error
    except UnicodeEncodeError as error:
        raise InvalidInput(f"a text is not valid UTF-8 at character {error.start}: {error.object!r:.80}") from error
