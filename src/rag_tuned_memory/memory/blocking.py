"""``Memory``: ``AsyncMemory`` for code that is not async.

Every method is the one of ``AsyncMemory`` of the same name, run in the event loop of a thread of its own: it works
inside a running loop and in notebooks, and may be called from any thread.
"""

from __future__ import annotations

import functools
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, cast

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.distil.policy import DistilPolicy
from rag_tuned_memory.embedding.base import Embedder
from rag_tuned_memory.learning.worker import Round
from rag_tuned_memory.memory.asynchronous import AsyncMemory, AsyncWorkerHandle
from rag_tuned_memory.serving.base import InferenceBackend
from rag_tuned_memory.settings import Settings
from rag_tuned_memory.store.base import EpisodeStore

P = ParamSpec("P")
R = TypeVar("R")
Core = TypeVar("Core")


class _Face(Protocol):
    """What has an async object behind it, and its event loop."""

    @property
    def _core(self) -> Any: ...

    @property
    def _running(self) -> _Loop: ...


def _blocking(method: Callable[Concatenate[Core, P], Awaitable[R]]) -> Callable[Concatenate[_Face, P], R]:
    """``method`` as one that returns when it is done."""

    @functools.wraps(method)
    def call(self: _Face, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return _wait(self._running.portal(), functools.partial(method, self._core, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[Core, P], AsyncIterator[R]],
) -> Callable[Concatenate[_Face, P], Iterator[R]]:
    """``method`` as one whose result is iterated over without async; leaving the loop early ends it."""

    @functools.wraps(method)
    def call(self: _Face, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return _iterate(self._running, functools.partial(method, self._core, *args, **kwargs))

    return call


def _wait(portal: BlockingPortal, work: Callable[[], Awaitable[R]]) -> R:
    task = portal.start_task_soon(work)
    try:
        return task.result()
    except BaseException:
        task.cancel()  # Ctrl-C while waiting: the work shall not go on behind the caller's back
        raise


_END = object()
_AHEAD = 16


def _iterate(loop: _Loop, make: Callable[[], AsyncIterator[R]]) -> Iterator[R]:
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


class Memory:
    """The memory of one namespace, without async; see ``AsyncMemory`` for the arguments and for what is raised.

    Use it as a context manager, or call ``close``; a memory that is left open is closed when the program ends.
    """

    def __init__(
        self,
        namespace: str,
        *,
        settings: Settings | None = None,
        store: EpisodeStore | None = None,
        embedder: Embedder | None = None,
        backend: InferenceBackend | None = None,
        registry: AdapterRegistry | None = None,
    ) -> None:
        self._core = AsyncMemory(
            namespace, settings=settings, store=store, embedder=embedder, backend=backend, registry=registry
        )
        self._running = _Loop(self._core)
        self._finish = weakref.finalize(self, self._running.close)

    @property
    def namespace(self) -> str:
        """The namespace that this memory is bound to."""
        return self._core.namespace

    @property
    def settings(self) -> Settings:
        """The settings in use."""
        return self._core.settings

    @property
    def registry(self) -> AdapterRegistry:
        """The adapters, of this namespace and others."""
        return self._core.registry

    record = _blocking(AsyncMemory.record)
    record_many = _blocking(AsyncMemory.record_many)
    recall = _blocking(AsyncMemory.recall)
    answer = _blocking(AsyncMemory.answer)
    stream = _iterating(AsyncMemory.stream)
    distil = _blocking(AsyncMemory.distil)
    promote = _blocking(AsyncMemory.promote)
    forget = _blocking(AsyncMemory.forget)
    forget_all = _blocking(AsyncMemory.forget_all)
    feedback = _blocking(AsyncMemory.feedback)
    stats = _blocking(AsyncMemory.stats)
    export = _iterating(AsyncMemory.export)
    reindex = _blocking(AsyncMemory.reindex)

    def start_worker(
        self,
        policy: DistilPolicy | None = None,
        *,
        interval: float = 30.0,
        on_round: Callable[[Round], None] | None = None,
    ) -> WorkerHandle:
        """Distil in the background whenever ``policy`` says so; see ``AsyncMemory.start_worker``."""
        start = functools.partial(self._core.start_worker, policy, interval=interval, on_round=on_round)
        return WorkerHandle(_wait(self._running.portal(), start), self._running)

    def close(self) -> None:
        """Stop the workers and close what was opened here; closing twice is allowed."""
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class WorkerHandle:
    """A worker that runs in the background."""

    def __init__(self, core: AsyncWorkerHandle, running: _Loop) -> None:
        self._core = core
        self._running = running

    @property
    def running(self) -> bool:
        """Whether it still works."""
        return self._core.running

    stop = _blocking(AsyncWorkerHandle.stop)


class _Loop:
    """The thread with the event loop of a ``Memory``, started when first needed."""

    def __init__(self, core: AsyncMemory) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self.iterations: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        """Those under way; one that was left and not yet collected would keep the loop from ending."""

    def portal(self) -> BlockingPortal:
        """The portal. After ``close`` a new one is started, as an ``AsyncMemory`` can be used after its close."""
        with self._lock:
            if self._portal is None:
                self._portal = self._stack.enter_context(start_blocking_portal(name="rtm memory"))
            return self._portal

    def close(self) -> None:
        with self._lock:
            if self._portal is not None:
                for task in list(self.iterations):
                    task.cancel()
                try:
                    self._portal.call(self._core.close)
                finally:
                    self._portal = None
                    self._stack.close()
