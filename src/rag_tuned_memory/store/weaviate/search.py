"""Finding passages: nearest vectors and best texts in two queries at once, exact phrases.

The server's own hybrid search gives one fused score; recall weighs the two signals itself, so it asks for each. What
a write has left behind (a version that was replaced, or never finished) is told by its generation and dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
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
from rag_tuned_memory.store.weaviate.fetching import MOST, by_ids, matching, or_empty
from rag_tuned_memory.store.weaviate.names import object_id
from rag_tuned_memory.store.weaviate.records import generations, searched
from rag_tuned_memory.store.weaviate.schema import VECTOR

_PASSAGE = ["trajectory_id", "generation", "payload"]
_MOST_TIES = 1000


@dataclass(frozen=True, slots=True)
class _Hit:
    """A passage that a search found; ``score`` is that search's own, the higher the better."""

    passage: Passage
    generation: str
    vector: Vectors
    score: float
    bm25: float | None = None


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
    identity = await searched(connection, namespace)
    if identity is None or limit == 0:
        return []
    query = unit(checked([vector], rows=1, dimension=identity.dimension))[0]
    if filters.finds_nothing(where):
        return []
    source = connection.passages(connection.passage_collection(identity), namespace)
    condition = filters.all_of(filters.of_both(where))
    by_vector, by_text = await asyncio.gather(
        _current(connection, namespace, lambda most: _nearest(source, query, condition, most), limit),
        _current(connection, namespace, lambda most: _best_texts(source, terms, condition, most), limit),
    )
    found = {hit.passage.key: hit for hit in [*by_vector, *by_text]}
    scored = [
        Candidate(hit.passage, dense=float(np.clip(hit.vector @ query, -1, 1)), bm25=hit.bm25) for hit in found.values()
    ]
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
    current = await generations(connection, namespace, [one for one, _, _ in keys])
    ids = [object_id("passage", one, current[one], step, chunk) for one, step, chunk in set(keys) if one in current]
    source = connection.passages(connection.passage_collection(identity), namespace)
    hits = [_hit(one) for one in await by_ids(source, ids, _PASSAGE, vectors=True)]
    found = [Candidate(hit.passage, dense=float(np.clip(hit.vector @ query, -1, 1)), bm25=None) for hit in hits]
    return sorted(found, key=lambda one: one.passage.key)


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
    current = await generations(connection, namespace, {one["trajectory_id"] for one in told})
    return len({one["trajectory_id"] for one in told if current.get(one["trajectory_id"]) == one["generation"]})


async def _current(
    connection: Connection, namespace: str, search: Callable[[int], Awaitable[list[_Hit]]], limit: int
) -> list[_Hit]:
    """The best ``limit`` hits that count, among equal ones those with the least keys.

    More are asked for where some do not count, or where the last ones are equal: the server's choice among these would
    be by chance.
    """
    most = min(limit + 1, MOST)
    while True:
        hits = await search(most)
        current = await generations(connection, namespace, _trajectories(hits))
        kept = [hit for hit in hits if current.get(hit.passage.trajectory_id) == hit.generation]
        tied = len(kept) > limit and kept[limit - 1].score == kept[-1].score
        if len(hits) < most or most >= min(limit + _MOST_TIES, MOST) or (len(kept) > limit and not tied):
            return sorted(kept, key=lambda hit: (-hit.score, hit.passage.key))[:limit]
        most = min(2 * most, limit + _MOST_TIES, MOST)


def _trajectories(hits: Iterable[_Hit]) -> set[str]:
    return {hit.passage.trajectory_id for hit in hits}


async def _nearest(source: Objects, vector: Vectors, where: Any, limit: int) -> list[_Hit]:
    answer = source.query.near_vector(
        vector.tolist(),
        target_vector=VECTOR,
        limit=limit,
        filters=where,
        include_vector=[VECTOR],
        return_properties=_PASSAGE,
        return_metadata=MetadataQuery(distance=True),
    )
    return [_hit(one, -one.metadata.distance) for one in await _found(answer)]


async def _best_texts(source: Objects, terms: Sequence[str], where: Any, limit: int) -> list[_Hit]:
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
    return [_hit(one, one.metadata.score, bm25=one.metadata.score) for one in await _found(answer)]


async def _found(answer: Awaitable[Any]) -> list[Any]:
    found = await or_empty(answer, None)
    return [] if found is None else list(found.objects)


def _hit(one: Any, score: float = 0.0, *, bm25: float | None = None) -> _Hit:
    vector = np.asarray(one.vector[VECTOR], dtype=np.float32)
    return _Hit(objects.passage(one.properties), one.properties["generation"], vector, score, bm25)
