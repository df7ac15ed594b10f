"""Getting objects by id or by condition. A namespace that was never written to is empty, not an error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from weaviate.classes.query import Filter as On
from weaviate.exceptions import WeaviateBaseError

from rag_tuned_memory.store.weaviate.connection import Objects
from rag_tuned_memory.store.weaviate.failures import no_tenant
from rag_tuned_memory.store.weaviate.filters import Condition

T = TypeVar("T")

MOST = 10_000
"""Weaviate gives no more results to one query."""
_IDS = 1000


async def or_empty(work: Awaitable[T], empty: T) -> T:
    """The result of ``work``, or ``empty`` where the namespace holds nothing."""
    try:
        return await work
    except WeaviateBaseError as error:
        if no_tenant(error):
            return empty
        raise


async def by_ids(
    source: Objects, ids: Sequence[UUID], properties: Sequence[str], *, vectors: bool = False
) -> list[Any]:
    """Objects by their ids; what is not there is left out."""
    found: list[Any] = []
    for start in range(0, len(ids), _IDS):
        some = ids[start : start + _IDS]
        answer = source.query.fetch_objects_by_ids(
            some, limit=len(some), return_properties=list(properties), include_vector=vectors
        )
        found += await found_by(answer)
    return found


async def with_any(source: Objects, name: str, values: Sequence[str]) -> set[UUID]:
    """The ids of objects whose property has one of some values, of which few objects have the same."""
    found: set[UUID] = set()
    for start in range(0, len(values), _IDS):
        condition = On.by_property(name).contains_any(list(values[start : start + _IDS]))
        found |= {
            one.uuid
            for one in await found_by(source.query.fetch_objects(filters=condition, limit=MOST, return_properties=[]))
        }
    return found


async def matching(
    source: Objects,
    where: Condition | None,
    properties: Sequence[str],
    meets: Callable[[Mapping[str, Any]], bool],
    *,
    vectors: bool = False,
) -> list[Any]:
    """All objects that meet a condition, however many; ``meets`` says the same of an object's properties.

    One query gives 10,000; where there are more, a cursor, which knows no conditions, goes through all objects.
    """
    wanted: dict[str, Any] = {"return_properties": list(properties), "include_vector": vectors}
    found = await found_by(source.query.fetch_objects(filters=where, limit=MOST, **wanted))
    if len(found) < MOST:
        return found
    return [one async for one in source.iterator(**wanted) if meets(one.properties)]


async def count(source: Objects, where: Condition | None) -> int:
    """How many objects meet a condition."""
    answer = await or_empty(source.aggregate.over_all(filters=where, total_count=True), None)
    return 0 if answer is None else int(answer.total_count or 0)


async def found_by(answer: Awaitable[Any]) -> list[Any]:
    """The objects of a query's answer; none where the namespace holds nothing."""
    found = await or_empty(answer, None)
    return [] if found is None else list(found.objects)


async def every(source: Objects, properties: Sequence[str]) -> AsyncIterator[Mapping[str, Any]]:
    """The properties of all objects, by a cursor."""
    try:
        async for one in source.iterator(return_properties=list(properties)):
            yield one.properties
    except WeaviateBaseError as error:
        if not no_tenant(error):
            raise
