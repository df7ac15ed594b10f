"""The memories of many namespaces over one store, embedder, backend and registry: what a service of many users holds.

There is no default namespace: nothing can be recorded or recalled here without naming whose it is.
"""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Self

from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.embedding.base import Embedder
from rag_tuned_memory.memory.asynchronous import AsyncMemory
from rag_tuned_memory.memory.blocking import Memory
from rag_tuned_memory.memory.loop import Loop
from rag_tuned_memory.memory.wiring import Parts
from rag_tuned_memory.serving.base import InferenceBackend
from rag_tuned_memory.settings import Settings
from rag_tuned_memory.store.base import EpisodeStore


class Memories:
    """Memories by namespace; see ``Memory`` for the arguments.

    Use it as a context manager, or call ``close`` when none of its memories is used any more.

    Raises:
        InvalidInput: a setting of the environment has a value that cannot be.
    """

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        store: EpisodeStore | None = None,
        embedder: Embedder | None = None,
        backend: InferenceBackend | None = None,
        registry: AdapterRegistry | None = None,
    ) -> None:
        self._parts = Parts(settings, store, embedder, backend, registry)
        self._running = Loop(self._parts.close)
        self._finish = weakref.finalize(self, self._running.close)

    @property
    def settings(self) -> Settings:
        """The settings in use."""
        return self._parts.settings

    def of(self, namespace: str) -> Memory:
        """The memory of ``namespace``; cheap, and need not be closed. Raises InvalidNamespace."""
        return Memory.over(AsyncMemory.over(self._parts, namespace), self._running)

    def close(self) -> None:
        """Close what was opened here; closing twice is allowed."""
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
