"""Looking for what killed processes and damage have left, and mending it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from rag_tuned_memory.errors import StoreCorrupt
from rag_tuned_memory.store.checks import REINDEX, RESTORE
from rag_tuned_memory.store.weaviate import objects
from rag_tuned_memory.store.weaviate.connection import Connection
from rag_tuned_memory.store.weaviate.fetching import every
from rag_tuned_memory.store.weaviate.reading import namespaces
from rag_tuned_memory.store.weaviate.records import generations, searched
from rag_tuned_memory.store.weaviate.removing import remove, version

_MEND = "Remove them with `rtm doctor --mend`; nothing reads them."


@dataclass(slots=True)
class _Found:
    """What one namespace holds, told apart."""

    damaged: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    left: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    """Versions whose passages count nowhere, by collection."""


async def problems(connection: Connection) -> AsyncIterator[str]:
    """Each problem as a sentence with its remedy; all objects are read."""
    for name in await namespaces(connection):
        place = f"{connection.place}: namespace {name!r}"
        found = await _look(connection, name)
        for one in found.damaged:
            yield f"{place}: {one}. {RESTORE}"
        for one in found.incomplete:
            yield f"{place}: trajectory {one} lacks passages. {REINDEX}"
        left = set().union(*found.left.values()) if found.left else set()
        if left:
            yield f"{place}: passages of {len(left)} versions belong to no trajectory. {_MEND}"


async def mend(connection: Connection) -> list[str]:
    """Remove what interrupted writes have left behind; what was done, a sentence each."""
    done = []
    for name in await namespaces(connection):
        found = await _look(connection, name)
        for collection, versions in found.left.items():
            source = connection.passages(collection, name)
            for trajectory_id, generation in versions:
                # it may be a write that has just ended: look again before it is removed
                current = await generations(connection, name, [trajectory_id])
                if current.get(trajectory_id) != generation:
                    await remove(source, version(trajectory_id, generation))
            done.append(f"namespace {name!r}: removed what {len(versions)} interrupted writes had left")
    return done


async def _look(connection: Connection, namespace: str) -> _Found:
    found = _Found()
    wanted: dict[str, tuple[str, int]] = {}
    async for stored in every(connection.trajectories(namespace), [*objects.WHOLE, "generation", "passages"]):
        name = stored["trajectory_id"]
        wanted[name] = (stored["generation"], int(stored["passages"]))
        try:
            one = objects.stored_trajectory(stored, connection.place).trajectory
        except StoreCorrupt:
            found.damaged.append(f"trajectory {name} cannot be read")
            continue
        if (one.namespace, one.id, one.content_hash) != (namespace, name, stored["content_hash"]):
            found.damaged.append(f"trajectory {name} differs from its checksum")
    identity = await searched(connection, namespace)
    used = None if identity is None else connection.passage_collection(identity)
    for collection in await connection.passage_collections():
        counts: Counter[tuple[str, str]] = Counter()
        async for passage in every(connection.passages(collection, namespace), ["trajectory_id", "generation"]):
            counts[passage["trajectory_id"], passage["generation"]] += 1
        left = {version for version in counts if wanted.get(version[0], ("",))[0] != version[1]}
        if left:
            found.left[collection] = left
        if collection == used:
            found.incomplete = [name for name, (own, many) in wanted.items() if counts[name, own] != many]
    return found
