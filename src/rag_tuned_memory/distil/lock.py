"""One distillation run at a time for each namespace, across processes."""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from rag_tuned_memory.distil.naming import namespace_slug
from rag_tuned_memory.errors import DistilBusy, DistilError
from rag_tuned_memory.trajectory import validate_namespace


class Holder(BaseModel):
    """Who distils, as the readable file beside the lock says it."""

    model_config = ConfigDict(frozen=True)

    namespace: str
    pid: int
    host: str
    since: AwareDatetime


class RunLock:
    """A lock that the operating system lets go when its process dies, however it dies.

    ``with RunLock(folder, namespace): ...`` takes it at once or raises DistilBusy; it never waits. In ``folder`` lie
    ``<slug>.lock``, which the operating system locks, and while a run goes on ``<slug>.holder.json`` for people. Only
    the first decides: a holder file that a killed run left behind locks nothing. Not reentrant.
    """

    def __init__(self, folder: Path, namespace: str) -> None:
        self.namespace = validate_namespace(namespace)
        self._folder = Path(folder)
        slug = namespace_slug(namespace)
        self._holder_file = self._folder / f"{slug}.holder.json"
        # One run may enter in one worker thread and leave in another.
        self._lock = FileLock(self._folder / f"{slug}.lock", thread_local=False)

    def acquire(self) -> Holder:
        """Take the lock and say so in the holder file.

        Raises:
            DistilBusy: another run of this namespace goes on; names its process, host and start.
            DistilError: the folder cannot be written.
        """
        if self._lock.is_locked:
            raise self._busy()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise self._busy() from None
        except OSError as error:
            raise self._unwritable(error) from error
        holder = Holder(namespace=self.namespace, pid=os.getpid(), host=socket.gethostname(), since=datetime.now(UTC))
        try:
            self._write(holder)
        except OSError as error:
            self._lock.release()
            raise self._unwritable(error) from error
        return holder

    def release(self) -> None:
        """Let the lock go; nothing happens where it is not held."""
        if not self._lock.is_locked:
            return
        with contextlib.suppress(OSError):
            self._holder_file.unlink(missing_ok=True)
        self._lock.release()

    def holder(self) -> Holder | None:
        """Who the holder file names; None where there is none or it cannot be read."""
        try:
            return Holder.model_validate_json(self._holder_file.read_bytes())
        except (OSError, ValidationError):
            return None

    def _write(self, holder: Holder) -> None:
        # A reader sees the old file or the new one, never a half.
        temporary = self._holder_file.with_suffix(".tmp")
        temporary.write_text(holder.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self._holder_file)

    def _busy(self) -> DistilBusy:
        holder = self.holder()
        who = (
            f"process {holder.pid} on {holder.host}, since {holder.since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
            if holder
            else "another process"
        )
        return DistilBusy(
            f"namespace {self.namespace!r} is being distilled by {who}",
            place=str(self._holder_file),
            remedy="Wait until it ends, or end that process: its lock goes with it.",
        )

    def _unwritable(self, error: OSError) -> DistilError:
        return DistilError(
            f"the lock of namespace {self.namespace!r} cannot be written: {error.strerror or error}",
            place=str(self._folder),
            remedy="Make the folder writable, or point RTM_HOME elsewhere.",
        )

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
