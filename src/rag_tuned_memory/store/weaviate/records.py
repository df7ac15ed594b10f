"""The raw records: which generation of passages counts, whose vectors are searched, small values."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from weaviate.classes.query import Filter as On

from rag_tuned_memory.embedding.base import EmbedderIdentity
from rag_tuned_memory.store.weaviate.batch import Sent, write_all
from rag_tuned_memory.store.weaviate.connection import Connection
from rag_tuned_memory.store.weaviate.fetching import by_ids, found_by, with_any
from rag_tuned_memory.store.weaviate.known import Version
from rag_tuned_memory.store.weaviate.names import object_id

_EMBEDDER = "embedder"


async def record(
    connection: Connection, namespace: str, trajectory_id: str, properties: Sequence[str]
) -> dict[str, Any] | None:
    """Properties of a stored trajectory; None where there is none."""
    found = await records(connection, namespace, [trajectory_id], properties)
    return found.get(trajectory_id)


async def records(
    connection: Connection, namespace: str, trajectory_ids: Iterable[str], properties: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Properties of stored trajectories by id; what is not there is left out."""
    ids = [object_id("trajectory", one) for one in dict.fromkeys(trajectory_ids)]
    found = await by_ids(connection.trajectories(namespace), ids, ["trajectory_id", *properties])
    return {one.properties["trajectory_id"]: dict(one.properties) for one in found}


async def generations(connection: Connection, namespace: str, trajectory_ids: Iterable[str]) -> dict[str, str]:
    """The generation whose passages count, by trajectory id. Passages of any other are what a write left behind."""
    found = await records(connection, namespace, trajectory_ids, ["generation"])
    return {name: properties["generation"] for name, properties in found.items()}


async def current(connection: Connection, namespace: str, versions: Collection[Version]) -> set[Version]:
    """Which of these versions count. Of two versions of one trajectory the server always says which."""
    ids = Counter(trajectory_id for trajectory_id, _ in versions)
    alone = {version for version in versions if ids[version[0]] == 1}
    known = connection.known.counting(namespace, alone)
    found = await _counting(connection, namespace, alone - known)
    connection.known.add(namespace, found)
    doubtful = set(versions) - alone
    if doubtful:
        found |= doubtful & set((await generations(connection, namespace, {name for name, _ in doubtful})).items())
    return known | found


async def _counting(connection: Connection, namespace: str, versions: Collection[Version]) -> set[Version]:
    """The same of versions of different trajectories.

    They are looked up by their generation, without properties: so the server need not read the raw records.
    """
    by_id = {object_id("trajectory", name): (name, own) for name, own in versions}
    found = await with_any(connection.trajectories(namespace), "generation", [own for _, own in versions])
    return {by_id[one] for one in found if one in by_id}


async def searched(connection: Connection, namespace: str) -> EmbedderIdentity | None:
    """Whose vectors are searched, also while there are none."""
    found = await get_value(connection, namespace, _EMBEDDER)
    identity = None if found is None else EmbedderIdentity.model_validate_json(found)
    connection.known.add_embedder(namespace, identity)
    return identity


async def search_with(connection: Connection, namespace: str, embedder: EmbedderIdentity) -> None:
    """Let ``embedder``'s vectors be searched from now on: one write of one object, so that it happens at once."""
    await set_value(connection, namespace, _EMBEDDER, embedder.model_dump_json())
    connection.known.add_embedder(namespace, embedder)


async def embedder(connection: Connection, namespace: str) -> EmbedderIdentity | None:
    """Whose vectors the namespace holds; None while it holds none."""
    some = On.by_property("passages").greater_than(0)
    having = connection.trajectories(namespace).query.fetch_objects(filters=some, limit=1, return_properties=[])
    found, identity = await asyncio.gather(found_by(having), searched(connection, namespace))
    return identity if found else None


async def get_value(connection: Connection, namespace: str, key: str) -> str | None:
    """A small value of a namespace."""
    found = await by_ids(connection.values(), [object_id("value", namespace, key)], ["value"])
    return str(found[0].properties["value"]) if found else None


async def set_value(connection: Connection, namespace: str, key: str, value: str | None) -> None:
    """Keep a small value; None removes it."""
    name = object_id("value", namespace, key)
    if value is None:
        await connection.values().data.delete_by_id(name)
        return
    sent = Sent(name, {"namespace": namespace, "key": key, "value": value}, f"value {key!r}")
    await write_all(connection.values(), [sent], connection.place)
