"""Reading trajectories, passages, and what a namespace holds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from weaviate.classes.aggregate import GroupByAggregate, Metrics
from weaviate.classes.query import Filter as On
from weaviate.classes.query import Sort

from rag_tuned_memory.store.base import Filter, Heading, Passage, Projection, StoredTrajectory, StoreStats
from rag_tuned_memory.store.checks import not_found
from rag_tuned_memory.store.values import moment
from rag_tuned_memory.store.weaviate import filters, objects
from rag_tuned_memory.store.weaviate.connection import Connection, Objects
from rag_tuned_memory.store.weaviate.fetching import found_by, matching, or_empty
from rag_tuned_memory.store.weaviate.known import Version
from rag_tuned_memory.store.weaviate.records import generations, record, records, searched
from rag_tuned_memory.store.weaviate.removing import version
from rag_tuned_memory.store.weaviate.schema import TRAJECTORIES, VECTOR
from rag_tuned_memory.trajectory import StepKind

_NAMESPACES_AT_ONCE = 16
_MOST_GROUPS = 10_000


async def get(connection: Connection, namespace: str, trajectory_id: str) -> StoredTrajectory:
    """Raises TrajectoryNotFound, or StoreCorrupt where the stored text cannot be read."""
    found = await record(connection, namespace, trajectory_id, objects.WHOLE)
    if found is None:
        raise not_found(namespace, trajectory_id, connection.place)
    return objects.stored_trajectory(found, connection.place)


async def page(
    connection: Connection, namespace: str, *, after: int, where: Filter, size: int
) -> tuple[list[StoredTrajectory], int | None]:
    """Up to ``size`` trajectories with ``sequence > after`` in its order, and after which to go on (None: the end)."""
    if filters.finds_nothing(where):
        return [], None
    conditions = [On.by_property("sequence").greater_than(after), *filters.of_trajectory(where)]
    answer = connection.trajectories(namespace).query.fetch_objects(
        filters=filters.all_of(conditions),
        sort=Sort.by_property("sequence", ascending=True),
        limit=size,
        return_properties=[*objects.WHOLE, "generation"],
    )
    found = [one.properties for one in await found_by(answer)]
    last = int(found[-1]["sequence"]) if len(found) == size else None
    if own := filters.of_passage(where):
        meeting = await _meeting(
            connection, namespace, [(one["trajectory_id"], one["generation"]) for one in found], own
        )
        found = [one for one in found if one["trajectory_id"] in meeting]
    return [objects.stored_trajectory(one, connection.place) for one in found], last


async def _meeting(connection: Connection, namespace: str, versions: list[Version], own: list[Any]) -> set[str]:
    """Which trajectories, each with the generation that counts, have a passage that meets conditions."""
    identity = await searched(connection, namespace)
    if identity is None:
        return set()
    source = connection.passages(connection.passage_collection(identity), namespace)
    found: set[str] = set()
    for one, generation in versions:
        conditions = [version(one, generation), *own]
        answer = source.query.fetch_objects(filters=filters.all_of(conditions), limit=1, return_properties=[])
        if await found_by(answer):
            found.add(one)
    return found


async def passages(connection: Connection, namespace: str, trajectory_id: str) -> list[Passage]:
    """All passages of one trajectory in reading order."""
    found, identity = await asyncio.gather(
        generations(connection, namespace, [trajectory_id]), searched(connection, namespace)
    )
    if trajectory_id not in found or identity is None:
        return []
    source = connection.passages(connection.passage_collection(identity), namespace)
    return [one for one, _ in await _version(source, trajectory_id, found[trajectory_id])]


async def projection(connection: Connection, namespace: str, trajectory_id: str) -> Projection:
    """All passages of one trajectory in reading order, with their vectors. Raises TrajectoryNotFound."""
    stored = await get(connection, namespace, trajectory_id)
    identity = await searched(connection, namespace)
    found = await generations(connection, namespace, [trajectory_id])
    read: list[tuple[Passage, Any]] = []
    if identity is not None and trajectory_id in found:
        source = connection.passages(connection.passage_collection(identity), namespace)
        read = await _version(source, trajectory_id, found[trajectory_id], vectors=True)
    rows = [vector[VECTOR] for _, vector in read]
    vectors = np.array(rows, dtype=np.float32).reshape(len(rows), identity.dimension if identity else 0)
    return Projection(trajectory_id, stored.content_hash, [one for one, _ in read], vectors)


async def _version(
    source: Objects, trajectory_id: str, generation: str, *, vectors: bool = False
) -> list[tuple[Passage, Any]]:
    """The passages of one version in reading order, each with its vectors by name."""

    def meets(properties: Mapping[str, Any]) -> bool:
        return bool(properties["trajectory_id"] == trajectory_id and properties["generation"] == generation)

    wanted = ["trajectory_id", "generation", "payload"]
    read = await matching(source, version(trajectory_id, generation), wanted, meets, vectors=vectors)
    found = [(objects.passage(one.properties), one.vector) for one in read]
    return sorted(found, key=lambda pair: pair[0].key)


async def headings(connection: Connection, namespace: str, trajectory_ids: Sequence[str]) -> dict[str, Heading]:
    """Headings by trajectory id, without the raw records."""
    found = await records(connection, namespace, trajectory_ids, objects.HEADING)
    return {name: objects.heading(properties, connection.place) for name, properties in found.items()}


async def namespaces(connection: Connection) -> list[str]:
    """Namespaces that hold a trajectory, sorted."""
    every = connection.client.collections.use(connection.name(TRAJECTORIES))
    tenants = await every.tenants.get()
    limit = asyncio.Semaphore(_NAMESPACES_AT_ONCE)

    async def name(tenant: str) -> str | None:
        async with limit:
            query = every.with_tenant(tenant).query
            found = await found_by(query.fetch_objects(limit=1, return_properties=["namespace"]))
        return str(found[0].properties["namespace"]) if found else None

    found = await asyncio.gather(*map(name, tenants))
    return sorted(one for one in found if one is not None)


async def stats(connection: Connection, namespace: str) -> StoreStats:
    """Counts and times; ``bytes`` is the size of trajectories, texts and vectors; ``tools`` counts tool calls."""
    raw = connection.trajectories(namespace)
    whole, outcomes, sources, identity = await asyncio.gather(
        _aggregate(
            raw,
            return_metrics=[
                Metrics("time").integer(minimum=True, maximum=True),
                Metrics("recorded_at").integer(maximum=True),
                Metrics("bytes").integer(sum_=True),
            ],
        ),
        _groups(raw, "success"),
        _groups(raw, "source"),
        searched(connection, namespace),
    )
    if whole is None or not whole.total_count:
        return StoreStats(0, 0, 0, 0, None, None, None, bytes=0)
    texts: Any = None
    tools: dict[str, int] = {}
    if identity is not None:
        own = connection.passages(connection.passage_collection(identity), namespace)
        calls = On.all_of([On.by_property("kind").equal(StepKind.TOOL_CALL.value), On.by_property("chunk").equal(0)])
        texts, tools = await asyncio.gather(
            _aggregate(own, return_metrics=[Metrics("bytes").integer(sum_=True)]), _groups(own, "tool", calls)
        )
    count = int(texts.total_count or 0) if texts is not None else 0
    size = int(texts.properties["bytes"].sum_ or 0) if texts is not None and count else 0
    vectors = 4 * (identity.dimension if identity else 0) * count
    return StoreStats(
        trajectories=whole.total_count,
        passages=count,
        successes=outcomes.get("true", 0),
        failures=outcomes.get("false", 0),
        first_time=_moment(whole.properties["time"].minimum),
        last_time=_moment(whole.properties["time"].maximum),
        recorded_at=_moment(whole.properties["recorded_at"].maximum),
        bytes=int(whole.properties["bytes"].sum_ or 0) + size + vectors,
        sources=sources,
        tools=tools,
    )


async def _aggregate(source: Objects, **asked: Any) -> Any:
    return await or_empty(source.aggregate.over_all(total_count=True, **asked), None)


async def _groups(source: Objects, name: str, where: Any = None) -> dict[str, int]:
    """How many objects have each value of a property."""
    by = GroupByAggregate(prop=name, limit=_MOST_GROUPS)
    answer = await or_empty(source.aggregate.over_all(group_by=by, filters=where, total_count=True), None)
    if answer is None:
        return {}
    counts = {_text(group.grouped_by.value): int(group.total_count or 0) for group in answer.groups}
    return dict(sorted(counts.items()))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _moment(value: float | None) -> Any:
    return None if value is None else moment(int(value))
