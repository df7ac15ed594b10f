"""Re-embedding a namespace while it is used.

The new vectors go to a collection of their own, beside the old one; searching changes over by one write of one small
object. An alias would change all namespaces at once, also those whose copy is not done, and reaches objects only, not
tenants. The old passages stay, so that one can go back, until ``drop_unused`` is told to remove them; what is deleted
is deleted from both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from weaviate.classes.query import Filter as On

from rag_tuned_memory.embedding.base import EmbedderIdentity
from rag_tuned_memory.store.base import Projection
from rag_tuned_memory.store.checks import checked_passages
from rag_tuned_memory.store.weaviate import objects
from rag_tuned_memory.store.weaviate.batch import write_all
from rag_tuned_memory.store.weaviate.connection import Connection, Objects
from rag_tuned_memory.store.weaviate.fetching import count, every
from rag_tuned_memory.store.weaviate.names import object_id, tenant
from rag_tuned_memory.store.weaviate.records import generations, search_with, searched
from rag_tuned_memory.store.weaviate.removing import remove, version
from rag_tuned_memory.store.weaviate.writing import passages_sent


async def rebuild(
    connection: Connection, namespace: str, projections: Sequence[Projection], embedder: EmbedderIdentity
) -> list[str]:
    """Replace all projections of a namespace; see ``EpisodeStore.rebuild``.

    Done again after a crash it ends the same: passages have the ids that they had.
    """
    before = await searched(connection, namespace)
    if before is None:
        return []
    given = {one.trajectory_id: one for one in projections}
    for one in projections:
        checked_passages(one.trajectory_id, one.passages, one.vectors, embedder)
    if stale := await _stale(connection, namespace, given):
        return stale
    await _copy(connection, namespace, given, embedder)
    if stale := await _stale(connection, namespace, given):
        return stale
    await search_with(connection, namespace, embedder)
    # a write that read the old embedder before and ends only now would be missing from the new vectors
    if stale := await _stale(connection, namespace, given):
        await search_with(connection, namespace, before)
    return stale


async def drop_unused(connection: Connection, namespace: str) -> list[EmbedderIdentity]:
    """Remove the passages of a namespace that are not searched; whose vectors they were."""
    used = await searched(connection, namespace)
    dropped = []
    for name, identity in (await connection.passage_collections()).items():
        source = connection.client.collections.use(name)
        if identity != used and await source.tenants.exists(tenant(namespace)):
            await source.tenants.remove(tenant(namespace))
            dropped.append(identity)
    return dropped


async def _stale(connection: Connection, namespace: str, given: dict[str, Projection]) -> list[str]:
    """Trajectories whose present content no projection is of."""
    stored = every(connection.trajectories(namespace), ["trajectory_id", "content_hash"])
    names = [
        str(one["trajectory_id"])
        async for one in stored
        if one["trajectory_id"] not in given or given[one["trajectory_id"]].content_hash != one["content_hash"]
    ]
    return sorted(names)


async def _copy(
    connection: Connection, namespace: str, given: dict[str, Projection], embedder: EmbedderIdentity
) -> None:
    source = connection.passages(await connection.ensure_passages(embedder), namespace)
    async for stored in every(
        connection.trajectories(namespace), [*objects.WHOLE, "generation", "passages", "namespace"]
    ):
        one = given.get(stored["trajectory_id"])
        if one is None:
            continue
        trajectory = objects.stored_trajectory(stored, connection.place).trajectory
        vectors = checked_passages(one.trajectory_id, one.passages, one.vectors, embedder)
        sent = await asyncio.to_thread(passages_sent, trajectory, one.passages, vectors, stored["generation"])
        await write_all(source, sent, connection.place)
        await _keep_only(connection, source, stored, [each.id for each in sent])
        now = await generations(connection, namespace, [one.trajectory_id])
        if now.get(one.trajectory_id) != stored["generation"]:  # removed or replaced meanwhile
            await remove(source, version(one.trajectory_id, stored["generation"]))


async def _keep_only(connection: Connection, source: Objects, stored: Mapping[str, Any], ids: Sequence[UUID]) -> None:
    """Remove what the same embedder's passages had before under the same version, where text is cut anew."""
    own = version(stored["trajectory_id"], stored["generation"])
    if await count(source, own) != len(ids):
        await remove(source, own & On.by_id().contains_none(ids) if ids else own)
    if int(stored["passages"]) != len(ids):
        raw = connection.trajectories(stored["namespace"])
        await raw.data.update(object_id("trajectory", stored["trajectory_id"]), {"passages": len(ids)})
