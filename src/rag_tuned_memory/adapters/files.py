"""Writing files so that a crash leaves the old state or the new one, and proving that they did not change since."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_STAGING = ".staging"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make names that were created, renamed or removed in ``folder`` durable."""
    if os.name == "nt":  # a folder cannot be opened there, and NTFS journals names itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk; its name is durable after ``sync_folder``."""
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` in one step: a reader, or a crash, finds the old content or the new."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    write_durably(temporary, data)
    os.replace(temporary, path)
    sync_folder(path.parent)


def relative_files(folder: Path) -> Iterator[str]:
    """All files below ``folder`` as relative paths with ``/``, sorted."""
    yield from sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file and make its content durable."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    with target.open("rb+") as stream:
        os.fsync(stream.fileno())
    sync_folder(target.parent)


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A new, empty folder below ``parent``, to be filled and renamed to its final name in one step.

    What still lies there when the block ends is removed, and so is what killed processes left behind.
    """
    area = parent / _STAGING
    area.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(area)
    staging = area / uuid.uuid4().hex
    lock_file = staging.with_suffix(".lock")
    with FileLock(lock_file):
        try:
            staging.mkdir()
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            lock_file.unlink(missing_ok=True)


def _remove_abandoned(area: Path) -> None:
    """A staged copy is in use while its lock is held; locks die with their processes."""
    for lock_file in area.glob("*.lock"):
        with contextlib.suppress(Timeout, OSError), FileLock(lock_file, timeout=0):
            shutil.rmtree(lock_file.with_suffix(""), ignore_errors=True)
            lock_file.unlink(missing_ok=True)
