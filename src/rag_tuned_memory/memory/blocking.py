"""``Memory``: ``AsyncMemory`` for code that is not async.

Every method is the one of ``AsyncMemory`` of the same name, run in the event loop of a thread of its own: it works
inside a running loop and in notebooks, and may be called from any thread. With an ``a`` in front (``arecall``) it is
awaited instead, from any asyncio event loop: a library that is called both ways needs one object for both.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.distil.policy import DistilPolicy
from rag_tuned_memory.embedding.base import Embedder
from rag_tuned_memory.learning.worker import Round
from rag_tuned_memory.memory.asynchronous import AsyncMemory, AsyncWorkerHandle
from rag_tuned_memory.memory.loop import Loop, aiterating, awaiting, blocking, iterating, wait
from rag_tuned_memory.serving.base import InferenceBackend
from rag_tuned_memory.settings import Settings
from rag_tuned_memory.store.base import EpisodeStore


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
        core = AsyncMemory(
            namespace, settings=settings, store=store, embedder=embedder, backend=backend, registry=registry
        )
        running = Loop(core.close)
        self._bind(core, running, weakref.finalize(self, running.close))

    @classmethod
    def over(cls, core: AsyncMemory, running: Loop) -> Self:
        """The face of ``core``, which runs in a loop that others use too; ``close`` only ends its workers."""
        face = cls.__new__(cls)
        face._bind(core, running, lambda: wait(running.portal(), core.close))
        return face

    def _bind(self, core: AsyncMemory, running: Loop, finish: Callable[[], object]) -> None:
        self._core = core
        self._running = running
        self._finish = finish

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

    record = blocking(AsyncMemory.record)
    extend = blocking(AsyncMemory.extend)
    record_many = blocking(AsyncMemory.record_many)
    get = blocking(AsyncMemory.get)
    call = blocking(AsyncMemory.call)
    recall = blocking(AsyncMemory.recall)
    answer = blocking(AsyncMemory.answer)
    stream = iterating(AsyncMemory.stream)
    generate = blocking(AsyncMemory.generate)
    stream_generate = iterating(AsyncMemory.stream_generate)
    decide = blocking(AsyncMemory.decide)
    adapter = blocking(AsyncMemory.adapter)
    distil = blocking(AsyncMemory.distil)
    promote = blocking(AsyncMemory.promote)
    forget = blocking(AsyncMemory.forget)
    forget_all = blocking(AsyncMemory.forget_all)
    feedback = blocking(AsyncMemory.feedback)
    stats = blocking(AsyncMemory.stats)
    export = iterating(AsyncMemory.export)
    reindex = blocking(AsyncMemory.reindex)

    arecord = awaiting(AsyncMemory.record)
    aextend = awaiting(AsyncMemory.extend)
    arecord_many = awaiting(AsyncMemory.record_many)
    aget = awaiting(AsyncMemory.get)
    acall = awaiting(AsyncMemory.call)
    arecall = awaiting(AsyncMemory.recall)
    aanswer = awaiting(AsyncMemory.answer)
    astream = aiterating(AsyncMemory.stream)
    agenerate = awaiting(AsyncMemory.generate)
    astream_generate = aiterating(AsyncMemory.stream_generate)
    adecide = awaiting(AsyncMemory.decide)
    aadapter = awaiting(AsyncMemory.adapter)
    adistil = awaiting(AsyncMemory.distil)
    apromote = awaiting(AsyncMemory.promote)
    aforget = awaiting(AsyncMemory.forget)
    aforget_all = awaiting(AsyncMemory.forget_all)
    afeedback = awaiting(AsyncMemory.feedback)
    astats = awaiting(AsyncMemory.stats)
    aexport = aiterating(AsyncMemory.export)
    areindex = awaiting(AsyncMemory.reindex)

    def start_worker(
        self,
        policy: DistilPolicy | None = None,
        *,
        interval: float = 30.0,
        on_round: Callable[[Round], None] | None = None,
    ) -> WorkerHandle:
        """Distil in the background whenever ``policy`` says so; see ``AsyncMemory.start_worker``."""
        start = functools.partial(self._core.start_worker, policy, interval=interval, on_round=on_round)
        return WorkerHandle(wait(self._running.portal(), start), self._running)

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

    def __init__(self, core: AsyncWorkerHandle, running: Loop) -> None:
        self._core = core
        self._running = running

    @property
    def running(self) -> bool:
        """Whether it still works."""
        return self._core.running

    stop = blocking(AsyncWorkerHandle.stop)
