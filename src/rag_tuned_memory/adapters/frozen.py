"""Folders that are written once: whole or not at all, and never changed afterwards."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from pathlib import Path

from rag_tuned_memory.adapters.files import (
    copy_durably,
    relative_files,
    sha256_of,
    staging_folder,
    sync_folder,
    write_durably,
)
from rag_tuned_memory.errors import AdapterError, StoreFull

Contents = Mapping[str, bytes | Path]
"""Of a folder's files, by name: the bytes, or the file to be copied."""


def write_once(root: Path, target: Path, contents: Contents) -> bool:
    """Make ``target``, a folder below ``root``, with these files; True if it was made, False if it was there already.

    The folder gets its name in one step when all of it is on the disk; whoever reads meanwhile, and a process that is
    killed, leaves no half of it. Of two processes that write the same, one does it. Blocking.

    Raises:
        AdapterError: the folder is there with other content, or cannot be written.
        StoreFull: no space is left on the device; nothing was left behind.
    """
    with _clear_errors(root):
        if target.exists():
            _compare(target, contents)
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(root) as staging:
            for name, content in contents.items():
                if isinstance(content, bytes):
                    write_durably(staging / name, content)
                else:
                    copy_durably(content, staging / name)
            sync_folder(staging)
            _compare(staging, contents)  # a file that changes while it is copied is noticed
            try:
                staging.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                _compare(target, contents)  # another process was faster
                return False
        sync_folder(target.parent)
        return True


def _compare(folder: Path, contents: Contents) -> None:
    """Raise AdapterError unless the folder holds exactly these files."""
    found = set(relative_files(folder))
    for name in sorted(found ^ set(contents)):
        raise _other(folder, f"{name} is {'not part of it' if name in found else 'missing'}")
    for name, content in contents.items():
        path = folder / name
        same = path.read_bytes() == content if isinstance(content, bytes) else sha256_of(path) == sha256_of(content)
        if not same:
            raise _other(folder, f"{name} differs")


def _other(folder: Path, reason: str) -> AdapterError:
    return AdapterError(
        f"something else lies here under this name: {reason}",
        place=str(folder),
        remedy="It is never changed, since servers may use it. Export to another folder, or remove this one first.",
    )


@contextlib.contextmanager
def _clear_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                "no space is left on the device; nothing was exported",
                place=str(root),
                remedy="Free some space, then try again.",
            ) from error
        raise AdapterError(
            f"the folder cannot be written: {error.strerror or error}",
            place=str(error.filename or root),
            remedy="Name a folder that you may write to.",
        ) from error
