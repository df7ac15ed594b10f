"""The parts of a memory: those given, and the rest opened from the settings when first needed.

Recording and recalling open the store and the embedder, never the language model.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from pydantic import ValidationError

from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.distil.naming import namespace_slug
from rag_tuned_memory.embedding import open_embedder
from rag_tuned_memory.embedding.base import Embedder
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.models import locate
from rag_tuned_memory.recall.engine import Recall
from rag_tuned_memory.serving.base import InferenceBackend
from rag_tuned_memory.settings import Settings
from rag_tuned_memory.store import open_store
from rag_tuned_memory.store.base import EpisodeStore
from rag_tuned_memory.trajectory import describe

if TYPE_CHECKING:
    from rag_tuned_memory.adapters.live import LiveAdapters
    from rag_tuned_memory.distil.teacher import Teacher
    from rag_tuned_memory.routing.answering import Answerer


def load_settings() -> Settings:
    """Settings of the environment.

    Raises:
        InvalidInput: a variable has a value that cannot be; names the variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        names = ", ".join(f"RTM_{str(one['loc'][0]).upper()}" for one in error.errors() if one["loc"])
        raise InvalidInput(describe(error), place=names or None, remedy="Correct or unset it.") from error


class Parts:
    """Store, embedder, backend and registry of one memory.

    What was given stays its owner's; ``close`` closes what was opened here.
    Opening may read files: from async code, call these methods in a worker thread. Safe to use from several threads.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        store: EpisodeStore | None = None,
        embedder: Embedder | None = None,
        backend: InferenceBackend | None = None,
        registry: AdapterRegistry | None = None,
    ) -> None:
        self.settings = settings or load_settings()
        self.registry = registry or AdapterRegistry(self.settings.adapters_dir)
        self.updating = anyio.Lock()
        """Held while an episode is read and written back changed."""
        self.owned: list[EpisodeStore | InferenceBackend] = []
        self._lock = threading.RLock()
        self._store = store
        self._embedder = embedder
        self._backend = backend
        self._workbench: InferenceBackend | None = None
        self._recall: Recall | None = None
        self._live: LiveAdapters | None = None
        self._answerer: Answerer | None = None

    async def close(self) -> None:
        """Close what was opened here."""
        with anyio.CancelScope(shield=True):
            while self.owned:
                await self.owned.pop().close()

    def store(self) -> EpisodeStore:
        """The episode store. Raises InvalidInput for a URL of no known kind."""
        with self._lock:
            if self._store is None:
                self._store = open_store(self.settings.store_url, api_key=self.settings.weaviate_api_key)
                self.owned.append(self._store)
            return self._store

    def embedder(self) -> Embedder:
        """The embedder. Raises ModelNotPulled or MissingExtra, each with the command that helps."""
        with self._lock:
            if self._embedder is None:
                self._embedder = open_embedder(self.settings)
            return self._embedder

    def recall(self) -> Recall:
        """Store and embedder together."""
        with self._lock:
            if self._recall is None:
                self._recall = Recall(self.store(), self.embedder())
            return self._recall

    def base(self) -> Path:
        """The base model's folder. Raises ModelNotPulled."""
        return locate(self.settings.model, self.settings.cache)

    def backend(self) -> InferenceBackend:
        """The inference backend; its weights are loaded by its first request. Raises ModelNotPulled."""
        with self._lock:
            if self._backend is None:
                from rag_tuned_memory.serving.opening import open_backend

                self._backend = open_backend(self.settings, self.base())
                self.owned.append(self._backend)
            return self._backend

    def workbench(self) -> InferenceBackend:
        """What measures a new adapter: the backend given or opened here, unless that asks a server.

        An adapter that no gate has seen is not loaded where others are served. Raises ModelNotPulled.
        """
        with self._lock:
            if not self.settings.backend:
                return self.backend()
            if self._workbench is None:
                from rag_tuned_memory.serving.local import LocalBackend

                self._workbench = LocalBackend(self.base())
                self.owned.append(self._workbench)
            return self._workbench

    def live(self) -> LiveAdapters:
        """The serving adapters in the backend."""
        with self._lock:
            if self._live is None:
                from rag_tuned_memory.adapters.live import LiveAdapters

                self._live = LiveAdapters(self.registry, self.backend())
            return self._live

    def opened_live(self) -> LiveAdapters | None:
        """As ``live``, but None while nothing was answered yet."""
        return self._live

    def answerer(self) -> Answerer:
        """What answers queries."""
        with self._lock:
            if self._answerer is None:
                from rag_tuned_memory.routing.answering import Answerer

                self._answerer = Answerer(self.recall(), self.backend(), self.live())
            return self._answerer

    def reindexed(self, namespace: str) -> Path:
        """Where a rebuild of a namespace's vectors keeps those that are done."""
        return self.settings.home / "reindex" / namespace_slug(namespace)

    def teacher_replies(self, namespace: str) -> Path:
        """Where a teacher's replies about a namespace's episodes are kept."""
        return self.settings.home / "teacher" / namespace_slug(namespace)

    @asynccontextmanager
    async def teacher(self, namespace: str) -> AsyncIterator[Teacher]:
        """The teacher that the settings name, or the base model itself; closed at the end of the block.

        Raises:
            InvalidInput: an endpoint without a model's name.
            MissingExtra: the extra ``teacher`` is not installed.
        """
        from rag_tuned_memory.distil.teacher import BackendTeacher, CachedTeacher, open_teacher

        folder = self.teacher_replies(namespace)
        teacher = await anyio.to_thread.run_sync(open_teacher, self.settings)
        if teacher is None:
            yield CachedTeacher(BackendTeacher(await anyio.to_thread.run_sync(self.backend)), folder)
            return
        try:
            yield CachedTeacher(teacher, folder)
        finally:
            with anyio.CancelScope(shield=True):
                await teacher.close()
