"""The thread that owns the model, and the way back from it to the event loops."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio

from rag_tuned_memory.errors import BackendError, BackendUnavailable, RagTunedMemoryError
from rag_tuned_memory.serving.local.batching import Job

T = TypeVar("T")
IDLE = 0.3
"""Seconds that the thread waits for more before it ends."""


class Mailbox(Generic[T]):
    """Carries items from any thread to the task that made it. ``post`` never waits for the event loop.

    anyio's own way from foreign threads waits until the loop has run the function: a loop that is blocked for a
    while would hold up the model for everyone, and two loops that wait for one another would never go on.
    """

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[T](float("inf"))
        self._soon = _call_soon()

    def post(self, item: T) -> None:
        """Deliver from any thread; without effect once the reader's loop is gone."""
        try:
            self._soon(self._put, item)
        except RuntimeError:
            return

    def _put(self, item: T) -> None:
        try:
            self._send.send_nowait(item)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return

    async def get(self) -> T:
        """The next item."""
        return await self._receive.receive()

    def close(self) -> None:
        """Nothing is read any more."""
        self._send.close()
        self._receive.close()


def _call_soon() -> Callable[..., Any]:
    import asyncio

    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio  # type: ignore[import-not-found, unused-ignore]

        soon: Callable[..., Any] = trio.lowlevel.current_trio_token().run_sync_soon
        return soon


@dataclass(eq=False)
class Call:
    """A function for the worker thread, run between batches once ``ready(waiting jobs)``."""

    function: Callable[[], Any]
    on_done: Callable[[Any], None]
    """Gets the result or the exception."""
    ready: Callable[[list[Job]], bool] = lambda waiting: True


class Worker:
    """One thread that takes jobs and calls from any thread.

    ``prepare`` makes a job ready to be batched, ``pick`` chooses those of the waiting jobs that run next, and
    ``run_batch`` runs them and reports to each, unless its second argument says that the worker is closing. What
    they raise is given to the jobs concerned, and the thread goes on. It ends when nothing came for ``IDLE`` seconds,
    and with it its OpenMP workers, which slow others down (see ``models.in_own_thread``); the next job starts another.
    """

    def __init__(
        self,
        prepare: Callable[[Job], None],
        pick: Callable[[list[Job]], list[Job]],
        run_batch: Callable[[list[Job], Callable[[], bool]], None],
    ) -> None:
        self._prepare, self._pick, self._run_batch = prepare, pick, run_batch
        self._queue: queue.SimpleQueue[Job | Call | None] = queue.SimpleQueue()
        self._waiting: list[Job] = []
        self._calls: list[Call] = []
        self._lock = threading.Lock()
        self._closing = False
        self._thread: threading.Thread | None = None

    def submit(self, *items: Job | Call) -> None:
        """Queue jobs and calls; starts the thread with the first. Raises BackendUnavailable after ``close``."""
        with self._lock:
            if self._closing:
                raise closed_error()
            for item in items:
                self._queue.put(item)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rtm-model", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop after the running step; whatever is left fails with BackendUnavailable. Waits for the thread."""
        with self._lock:
            self._closing = True
            thread = self._thread
            self._queue.put(None)
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._closing:
            came = self._drain(wait=0 if self._waiting or self._calls else IDLE)
            if not came and self._ends():
                return
            self._waiting = [job for job in self._waiting if not job.cancelled]
            self._run_calls()
            if self._waiting and not self._closing:
                self._run_one_batch(self._pick(self._waiting))
        self._drain(wait=0)
        for job in self._waiting:
            job.report(closed_error())
        for call in self._calls:
            call.on_done(closed_error())

    def _ends(self) -> bool:
        """Whether there is nothing to do; if so, the next ``submit`` starts a new thread."""
        with self._lock:
            if self._closing or self._waiting or self._calls or not self._queue.empty():
                return False
            self._thread = None
            return True

    def _drain(self, *, wait: float) -> bool:
        """Take all that is queued, waiting for a first item; whether anything came."""
        came = False
        while True:
            try:
                item = self._queue.get(timeout=wait) if wait else self._queue.get_nowait()
            except queue.Empty:
                return came
            wait, came = 0, True
            if isinstance(item, Call):
                self._calls.append(item)
            elif isinstance(item, Job) and not item.cancelled:
                self._take(item)

    def _take(self, job: Job) -> None:
        if not self._closing:
            try:
                self._prepare(job)
            except Exception as error:
                job.report(_ours(error))
                return
        self._waiting.append(job)

    def _run_calls(self) -> None:
        for call in [call for call in self._calls if call.ready(self._waiting)]:
            self._calls.remove(call)
            try:
                result = call.function()
            except Exception as error:
                result = _ours(error)
            call.on_done(result)

    def _run_one_batch(self, batch: list[Job]) -> None:
        try:
            self._run_batch(batch, lambda: self._closing)
        except Exception as error:
            for job in batch:
                job.report(_ours(error))
        self._waiting = [job for job in self._waiting if not (job.reported or job.cancelled)]


def closed_error() -> BackendUnavailable:
    """What everyone gets after ``close``."""
    return BackendUnavailable("the local backend was closed", remedy="Make a new LocalBackend.")


def _ours(error: Exception) -> Exception:
    if isinstance(error, RagTunedMemoryError):
        return error
    wrapped = BackendError(f"the model failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
