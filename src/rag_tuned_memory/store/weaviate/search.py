"""Finding passages: nearest vectors and best texts in two queries at once, exact phrases.

The server's own hybrid search gives one fused score; recall weighs the two signals itself, so it asks for each. What
a write has left behind (a version that was replaced, or never finished) is told by its generation and dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from weaviate.classes.query import Filter as On
from weaviate.classes.query import MetadataQuery

from rag_tuned_memory.embedding.base import Vectors, checked
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.store.base import Candidate, Filter, Passage
from rag_tuned_memory.store.terms import phrase_pattern
from rag_tuned_memory.store.values import unit
from rag_tuned_memory.store.weaviate import filters, objects
from rag_tuned_memory.store.weaviate.analysis import searched_terms
from rag_tuned_memory.store.weaviate.connection import Connection, Objects
from rag_tuned_memory.store.weaviate.fetching import MOST, by_ids, found_by, matching
from rag_tuned_memory.store.weaviate.known import Version
from rag_tuned_memory.store.weaviate.names import object_id
from rag_tuned_memory.store.weaviate.records import current, generations, searched
from rag_tuned_memory.store.weaviate.schema import VECTOR

_PASSAGE = ["trajectory_id", "generation", "payload"]
_MOST_TIES = 1000


@dataclass(frozen=True, slots=True)
class _Hit:
    passage: Passage
    generation: str
    cosine: float
    bm25: float | None

    @property
    def version(self) -> Version:
        return self.passage.trajectory_id, self.generation

    @property
    def score(self) -> float:
        """By which its search ranked it."""
        return self.cosine if self.bm25 is None else self.bm25


async def candidates(
    connection: Connection, namespace: str, text: str, vector: Vectors, *, limit: int, where: Filter
) -> list[Candidate]:
    """The best ``limit`` passages of each signal, with the cosine of each; ordered by it, then by key.

    Raises:
        InvalidVector: NaN, infinity, or another dimension than the namespace's.
        InvalidInput: a negative limit, or text that is not valid UTF-8.
    """
    if limit < 0:
        raise InvalidInput(f"limit must not be negative, is {limit}")
    terms = searched_terms(text)
    identity = connection.known.embedder(namespace) or await searched(connection, namespace)
    if identity is None or limit == 0:
        return []
    query = unit(checked([vector], rows=1, dimension=identity.dimension))[0]
    if filters.finds_nothing(where):
        return []
    source = connection.passages(connection.passage_collection(identity), namespace)
    condition = filters.all_of(filters.of_both(where))
    by_vector = _Ranked(limit, partial(_nearest, source, query, condition))
    by_text = _Ranked(limit, partial(_best_texts, source, terms, query, condition))
    while not (by_vector.done and by_text.done):
        await asyncio.gather(by_vector.search(), by_text.search())
        counting = await current(connection, namespace, {hit.version for hit in [*by_vector.hits, *by_text.hits]})
        by_vector.keep(counting)
        by_text.keep(counting)
    found = {hit.passage.key: hit for hit in [*by_vector.best, *by_text.best]}
    scored = [Candidate(hit.passage, dense=hit.cosine, bm25=hit.bm25) for hit in found.values()]
    return sorted(scored, key=lambda one: (-(one.dense or 0.0), one.passage.key))


async def candidates_at(
    connection: Connection, namespace: str, keys: Sequence[tuple[str, int, int]], vector: Vectors
) -> list[Candidate]:
    """The passages with these keys and their cosines, ordered by key.

    Raises:
        InvalidVector: NaN, infinity, or another dimension than the namespace's.
    """
    identity = await searched(connection, namespace)
    if identity is None or not keys:
        return []
    query = unit(checked([vector], rows=1, dimension=identity.dimension))[0]
    own = await generations(connection, namespace, [one for one, _, _ in keys])
    ids = [object_id("passage", one, own[one], step, chunk) for one, step, chunk in set(keys) if one in own]
    source = connection.passages(connection.passage_collection(identity), namespace)
    found = await by_ids(source, ids, _PASSAGE, vectors=True)
    scored = [
        Candidate(objects.passage(one.properties), dense=cosine, bm25=None)
        for one, cosine in zip(found, _cosines(found, query), strict=True)
    ]
    return sorted(scored, key=lambda one: one.passage.key)


async def mentions(connection: Connection, namespace: str, phrase: str) -> int:
    """In how many trajectories ``phrase`` occurs as whole words, in any case.

    The terms' index finds passages with all of its terms; their text then decides.
    """
    terms = searched_terms(phrase)
    identity = await searched(connection, namespace)
    if identity is None or not phrase.strip():
        return 0
    pattern = phrase_pattern(phrase)
    source = connection.passages(connection.passage_collection(identity), namespace)
    words = [term for term in terms if term.isalnum()]
    # a phrase of signs only (`***`) has no word to look up, so all texts are read
    condition = On.by_property("terms").contains_all(words) if words else None
    read = await matching(source, condition, _PASSAGE, lambda _: True)
    told = [one.properties for one in read if pattern.search(objects.passage(one.properties).indexed)]
    return len(await current(connection, namespace, {(one["trajectory_id"], one["generation"]) for one in told}))


class _Ranked:
    """The best ``limit`` hits of one search that count, among equal ones those with the least keys.

    More are asked for where some do not count, or where the last ones are equal: the server's choice among these would
    be by chance.
    """

    def __init__(self, limit: int, search: Callable[[int], Awaitable[list[_Hit]]]) -> None:
        self._limit, self._search = limit, search
        self._most = min(limit + 1, MOST)
        self.hits: list[_Hit] = []
        """What the server found; ``best`` is what counts of it."""
        self.best: list[_Hit] = []
        self.done = False

    async def search(self) -> None:
        """Ask the server, unless it has given enough."""
        if not self.done:
            self.hits = await self._search(self._most)

    def keep(self, counting: Collection[Version]) -> None:
        """Take the hits of versions that count; see whether they are enough."""
        kept = [hit for hit in self.hits if hit.version in counting]
        kept.sort(key=lambda hit: (-hit.score, hit.passage.key))
        self.best = kept[: self._limit]
        bound = min(self._limit + _MOST_TIES, MOST)
        told_apart = len(kept) > self._limit and kept[self._limit - 1].score > kept[-1].score
        self.done = len(self.hits) < self._most or self._most >= bound or told_apart
        self._most = min(2 * self._most, bound)


async def _nearest(source: Objects, vector: Vectors, where: Any, limit: int) -> list[_Hit]:
    answer = source.query.near_vector(
        vector.tolist(),
        target_vector=VECTOR,
        limit=limit,
        filters=where,
        return_properties=_PASSAGE,
        return_metadata=MetadataQuery(distance=True),
    )
    return [_hit(one, _clipped(1 - one.metadata.distance)) for one in await found_by(answer)]


async def _best_texts(source: Objects, terms: Sequence[str], vector: Vectors, where: Any, limit: int) -> list[_Hit]:
    if not terms:
        return []
    answer = source.query.bm25(
        " ".join(terms),
        query_properties=["terms"],
        limit=limit,
        filters=where,
        include_vector=[VECTOR],
        return_properties=_PASSAGE,
        return_metadata=MetadataQuery(score=True),
    )
    found = await found_by(answer)
    return [_hit(one, cosine, one.metadata.score) for one, cosine in zip(found, _cosines(found, vector), strict=True)]


def _cosines(found: Sequence[Any], vector: Vectors) -> list[float]:
    """The cosine of each object's vector to ``vector``."""
    if not found:
        return []
    vectors = np.array([one.vector[VECTOR] for one in found], dtype=np.float32)
    return [_clipped(cosine) for cosine in (vectors @ vector).tolist()]


def _clipped(cosine: float) -> float:
    """Within [-1, 1], which rounding may leave by a little."""
    return max(-1.0, min(1.0, cosine))


def _hit(one: Any, cosine: float, bm25: float | None = None) -> _Hit:
    passage, generation = objects.passage(one.properties), one.properties["generation"]
    return _Hit(passage, generation, cosine, bm25)
