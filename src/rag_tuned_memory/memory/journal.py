"""Open episodes on disk, so that a process that is killed loses no step.

A recorder has a folder of its own under ``<home>/open``, whose lock it holds as long as it lives. Each open episode is
a file of JSON lines there: what it began with, then its steps. A file whose recorder is gone is taken up by another.
"""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from rag_tuned_memory.distil.naming import namespace_slug
from rag_tuned_memory.trajectory import Namespace, Step, Text, Time, trajectory_id

_SUFFIX = ".jsonl"


class Opening(BaseModel):
    """What is known of an episode when it begins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: Namespace
    source: Text
    source_id: Text
    goal: Text = ""
    started_at: Time
    metadata: dict[str, JsonValue] = {}

    @cached_property
    def trajectory_id(self) -> str:
        """The id that the trajectory will have."""
        return trajectory_id(self.namespace, self.source, self.source_id)


class Journal:
    """The files of one recorder's open episodes; ``home`` is the folder that ``RTM_HOME`` names."""

    def __init__(self, home: Path) -> None:
        self._root = folder_of(home)
        self._own = self._root / uuid.uuid4().hex
        self._lock: FileLock | None = None
        self._opening = threading.Lock()

    def write(self, opening: Opening, step: Step) -> None:
        """Add a step to an episode's file. Raises OSError."""
        self._hold()
        path = self._file(opening)
        first = "" if path.exists() else opening.model_dump_json() + "\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{first}{step.model_dump_json(exclude_defaults=True)}\n")

    def _hold(self) -> None:
        """Lock the folder, then make it: a folder that is seen unlocked is one that was left."""
        with self._opening:
            if self._lock is None:
                self._root.mkdir(parents=True, exist_ok=True)
                lock = FileLock(_lock_of(self._own), thread_local=False)
                lock.acquire()
                self._own.mkdir(exist_ok=True)
                self._lock = lock

    def end(self, opening: Opening) -> None:
        """Remove an episode's file: the store has it."""
        self._file(opening).unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the folder to others, or remove it where no episode is open."""
        if self._lock is None:
            return
        if not any(self._own.glob(f"*{_SUFFIX}")):
            shutil.rmtree(self._own, ignore_errors=True)
        self._lock.release()
        if not self._own.exists():
            _lock_of(self._own).unlink(missing_ok=True)
        self._lock = None

    def left(self) -> Iterator[Path]:
        """Folders of recorders that are gone, each locked while it is looked at, and removed where it is empty then."""
        for folder in sorted(path for path in self._root.glob("*") if path.is_dir() and path != self._own):
            lock = FileLock(_lock_of(folder), thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue  # its recorder lives
            try:
                yield folder
                if not any(folder.glob(f"*{_SUFFIX}")):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                lock.release()
                if not folder.exists():
                    _lock_of(folder).unlink(missing_ok=True)

    def _file(self, opening: Opening) -> Path:
        return self._own / _file_name(opening.namespace, opening.trajectory_id)


def read(file: Path) -> tuple[Opening, list[Step]] | None:
    """What a file holds, None where not even its first line is whole; a last line that was cut off is left out."""
    lines = file.read_bytes().split(b"\n")
    try:
        opening = Opening.model_validate_json(lines[0])
    except ValidationError:
        return None
    return opening, [step for line in lines[1:] if (step := _step(line))]


def _step(line: bytes) -> Step | None:
    try:
        return Step.model_validate_json(line)
    except ValidationError:
        return None


def forget(home: Path, namespace: str, trajectory_ids: list[str] | None) -> list[str]:
    """Remove open episodes of a namespace, all of them where no ids are given; returns the files."""
    names = [_file_name(namespace, one) for one in trajectory_ids] if trajectory_ids is not None else None
    pattern = _file_name(namespace, "*")
    found = [path for path in folder_of(home).glob(f"*/{pattern}") if names is None or path.name in names]
    for path in found:
        path.unlink(missing_ok=True)
    return [str(path) for path in found]


def folder_of(home: Path) -> Path:
    """Where open episodes lie."""
    return home / "open"


def _file_name(namespace: str, identity: str) -> str:
    return f"{namespace_slug(namespace)}@{identity}{_SUFFIX}"


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
