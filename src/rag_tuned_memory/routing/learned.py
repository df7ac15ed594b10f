"""Which learned question a query comes closest to."""

from __future__ import annotations

from dataclasses import dataclass

import anyio.to_thread
import numpy as np

from rag_tuned_memory.adapters.manifest import Manifest
from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.distil.learned import LearnedFact, read_learned
from rag_tuned_memory.embedding.base import Embedder, Vectors


@dataclass(frozen=True, slots=True)
class Nearest:
    """The learned fact whose question is nearest to a query, and the cosine similarity."""

    fact: LearnedFact
    similarity: float


class LearnedQuestions:
    """The questions of serving adapters as vectors; made once for each adapter, the last one of a namespace is kept."""

    def __init__(self, registry: AdapterRegistry, embedder: Embedder) -> None:
        self._registry = registry
        self._embedder = embedder
        self._indices: dict[str, tuple[str, list[LearnedFact], Vectors]] = {}

    async def nearest(self, manifest: Manifest, vector: Vectors) -> Nearest | None:
        """The learned fact nearest to a query's ``vector``, shape ``(dimension,)``; None when nothing is listed."""
        _, facts, vectors = await self._index(manifest)
        if not facts:
            return None
        similarities = vectors @ vector
        best = int(np.argmax(similarities))
        return Nearest(facts[best], float(similarities[best]))

    async def _index(self, manifest: Manifest) -> tuple[str, list[LearnedFact], Vectors]:
        held = self._indices.get(manifest.namespace)
        if held is None or held[0] != manifest.name:
            folder = self._registry.files_of(manifest.name)
            facts = await anyio.to_thread.run_sync(read_learned, folder)
            vectors = await self._embedder.embed([fact.question for fact in facts], kind="query")
            held = self._indices[manifest.namespace] = (manifest.name, facts, vectors)
        return held
