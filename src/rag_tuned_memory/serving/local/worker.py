"""The thread that owns the model, and the way back from it to the event loops."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import anyio

from rag_tuned_memory.errors import BackendUnavailable
from rag_tuned_memory.serving.local.batching import Job, ours

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
    """A function for the worker thread, run between two steps once ``ready(jobs that wait or run)``."""

    function: Callable[[], Any]
    on_done: Callable[[Any], None]
    """Gets the result or the exception."""
    ready: Callable[[list[Job]], bool] = lambda jobs: True


class Steps(Protocol):
    """What the thread does with jobs, a step at a time."""

    @property
    def running(self) -> list[Job]: ...  # noqa: D102

    def step(self, waiting: list[Job]) -> None:
        """Admit jobs, which leave the list, and go on by one token with all that run; reports to each."""
        ...


class Worker:
    """One thread that takes jobs and calls from any thread.

    ``prepare`` makes a job ready to be batched, and ``steps`` runs them. What ``prepare`` and calls raise is given to
    those concerned, and the thread goes on. It ends when nothing came for ``IDLE`` seconds, and with it its OpenMP
    workers, which slow others down (see ``models.in_own_thread``); the next job starts another.
    """

    def __init__(self, prepare: Callable[[Job], None], steps: Steps) -> None:
        self._prepare, self._steps = prepare, steps
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

    @property
    def load(self) -> tuple[int, int]:
        """How many jobs wait, and how many run; from any thread, and so a moment old."""
        return self._queue.qsize() + len(self._waiting), len(self._steps.running)

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
            came = self._drain(wait=0 if self._waiting or self._calls or self._steps.running else IDLE)
            if not came and self._ends():
                return
            self._waiting = [job for job in self._waiting if not job.cancelled]
            self._run_calls()
            if not self._closing:
                self._steps.step(self._waiting)
        self._drain(wait=0)
        for job in self._waiting + self._steps.running:
            job.report(closed_error())
        for call in self._calls:
            call.on_done(closed_error())

    def _ends(self) -> bool:
        """Whether there is nothing to do; if so, the next ``submit`` starts a new thread."""
        with self._lock:
            if self._closing or self._waiting or self._calls or self._steps.running or not self._queue.empty():
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
                job.report(error)
                return
        self._waiting.append(job)

    def _run_calls(self) -> None:
        jobs = self._waiting + self._steps.running
        for call in [call for call in self._calls if call.ready(jobs)]:
            self._calls.remove(call)
            try:
                result = call.function()
            except Exception as error:
                result = ours(error)
            call.on_done(result)


def closed_error() -> BackendUnavailable:
    """What everyone gets after ``close``."""
    return BackendUnavailable("the local backend was closed", remedy="Make a new LocalBackend.")
