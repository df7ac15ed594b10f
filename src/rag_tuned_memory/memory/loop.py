"""Calls of an async object from other threads and other event loops: the methods of ``Memory`` are made here."""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

P = ParamSpec("P")
R = TypeVar("R")
Core = TypeVar("Core")


class Face(Protocol):
    """What has an async object behind it, and its event loop."""

    @property
    def _core(self) -> Any: ...

    @property
    def _running(self) -> Loop: ...


def blocking(method: Callable[Concatenate[Core, P], Awaitable[R]]) -> Callable[Concatenate[Face, P], R]:
    """``method`` as one that returns when it is done."""

    @functools.wraps(method)
    def call(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return wait(self._running.portal(), functools.partial(method, self._core, *args, **kwargs))

    return call


def iterating(
    method: Callable[Concatenate[Core, P], AsyncIterator[R]],
) -> Callable[Concatenate[Face, P], Iterator[R]]:
    """``method`` as one whose result is iterated over without async; leaving the loop early ends it."""

    @functools.wraps(method)
    def call(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return _iterate(self._running, functools.partial(method, self._core, *args, **kwargs))

    return call


def awaiting(
    method: Callable[Concatenate[Core, P], Awaitable[R]],
) -> Callable[Concatenate[Face, P], Coroutine[Any, Any, R]]:
    """``method`` awaited from another event loop; cancelling it there cancels it here."""

    @functools.wraps(method)
    async def call(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> R:
        work = functools.partial(method, self._core, *args, **kwargs)
        return await asyncio.wrap_future(self._running.portal().start_task_soon(work))

    return call


def aiterating(
    method: Callable[Concatenate[Core, P], AsyncIterator[R]],
) -> Callable[Concatenate[Face, P], AsyncIterator[R]]:
    """``method`` iterated over from another event loop."""

    @functools.wraps(method)
    def call(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        return _aiterate(_iterate(self._running, functools.partial(method, self._core, *args, **kwargs)))

    return call


async def _aiterate(items: Iterator[R]) -> AsyncIterator[R]:
    try:
        while (item := await anyio.to_thread.run_sync(next, items, _END)) is not _END:
            yield cast(R, item)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(items.close)  # type: ignore[attr-defined]


def wait(portal: BlockingPortal, work: Callable[[], Awaitable[R]]) -> R:
    """Run ``work`` in the portal's loop and return its result."""
    task = portal.start_task_soon(work)
    try:
        return task.result()
    except BaseException:
        task.cancel()  # Ctrl-C while waiting: the work shall not go on behind the caller's back
        raise


_END = object()
_AHEAD = 16


def _iterate(loop: Loop, make: Callable[[], AsyncIterator[R]]) -> Iterator[R]:
    # One task runs the whole iterator: an async generator must not move between tasks.
    portal = loop.portal()
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    room = portal.call(lambda: anyio.Semaphore(_AHEAD))

    async def produce() -> None:
        try:
            async for item in make():
                await room.acquire()
                items.put(item)
        finally:
            items.put(_END)

    task = portal.start_task_soon(produce)
    loop.iterations.add(task)
    try:
        while (item := items.get()) is not _END:
            yield cast(R, item)
            portal.call(room.release)
        task.result()  # raises what it raised
    finally:
        task.cancel()


class Loop:
    """A thread with an event loop, started when first needed; ``closing`` runs in it at the end."""

    def __init__(self, closing: Callable[[], Awaitable[None]]) -> None:
        self._closing = closing
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._was_closed = False
        self._last: weakref.finalize[..., Any] | None = None
        self.iterations: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        """Those under way; one that was left and not yet collected would keep the loop from ending."""

    def portal(self) -> BlockingPortal:
        """The portal. After ``close`` a new one is started, as an ``AsyncMemory`` can be used after its close."""
        with self._lock:
            if self._portal is None:
                self._portal = self._stack.enter_context(start_blocking_portal(name="rtm memory"))
                if self._was_closed:  # by whoever would have closed it when the program ends
                    self._last = weakref.finalize(self, _end, self._portal, self._stack, self._closing)
            return self._portal

    def close(self) -> None:
        """Let ``closing`` run and end the thread; it starts again when it is needed again."""
        with self._lock:
            if self._portal is not None:
                for task in list(self.iterations):
                    task.cancel()
                if self._last is not None:
                    self._last.detach()
                try:
                    _end(self._portal, self._stack, self._closing)
                finally:
                    self._portal = None
            self._was_closed = True


def _end(portal: BlockingPortal, stack: ExitStack, closing: Callable[[], Awaitable[None]]) -> None:
    try:
        portal.call(closing)
    finally:
        stack.close()
