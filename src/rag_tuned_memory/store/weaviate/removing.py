"""Removing trajectories: passages first, the raw record last, then absence is proved by query.

A process killed in between leaves a record without passages, which `rtm doctor` finds; never passages without a record
that somebody believes forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weaviate.classes.query import Filter as On

from rag_tuned_memory.errors import StoreBusy, StoreError
from rag_tuned_memory.store.weaviate.connection import Connection, Objects
from rag_tuned_memory.store.weaviate.failures import WRITABLE
from rag_tuned_memory.store.weaviate.fetching import count, or_empty
from rag_tuned_memory.store.weaviate.filters import Condition
from rag_tuned_memory.store.weaviate.names import tenant
from rag_tuned_memory.store.weaviate.records import records
from rag_tuned_memory.store.weaviate.schema import TRAJECTORIES

_IDS = 500
_ROUNDS = 5
"""So often a removal that another process crossed is done again."""


def version(trajectory_id: str, generation: str) -> Condition:
    """The passages of one version of a trajectory."""
    return On.by_property("trajectory_id").equal(trajectory_id) & On.by_property("generation").equal(generation)


async def remove(source: Objects, where: Condition) -> None:
    """Delete all objects that meet a condition: the server takes at most 10,000 at a time.

    Raises:
        StoreError: it does not get on.
    """
    while True:
        answer = await or_empty(source.data.delete_many(where), None)
        if answer is None or answer.matches == answer.successful:
            return
        if answer.successful == 0:
            # asked for the reason (verbose), a read-only server fails altogether
            raise StoreError(f"{answer.matches} objects cannot be deleted", remedy=f"If it is read-only: {WRITABLE}")


@dataclass(slots=True)
class Removal:
    """Trajectories on their way out. Tried again after a failure, it still knows what was there at first."""

    namespace: str
    trajectory_ids: Sequence[str]
    found: list[str] | None = None


async def delete(connection: Connection, removal: Removal) -> list[str]:
    """Remove trajectories with everything derived from them; returns the ids that were there, in the order given.

    When it returns, queries have shown that nothing of them is left, in the passages of any embedder.
    """
    namespace, names = removal.namespace, removal.trajectory_ids
    if removal.found is None:
        there = await records(connection, namespace, names, [])
        removal.found = [name for name in names if name in there]
    collections = await connection.passage_collections()
    sources = [connection.passages(name, namespace) for name in collections]
    # of those without a record too: a write that was killed may have left passages
    for start in range(0, len(names), _IDS):
        await _delete_some(connection, namespace, names[start : start + _IDS], sources)
    return removal.found


async def _delete_some(
    connection: Connection, namespace: str, names: Sequence[str], sources: Sequence[Objects]
) -> None:
    raw = connection.trajectories(namespace)
    for _ in range(_ROUNDS):
        where = _any_of(names)
        for source in [*sources, raw]:
            await remove(source, where)
        again = await records(connection, namespace, names, [])  # recorded meanwhile: that came later, and stands
        names = [name for name in names if name not in again]
        if not names or not any([await count(source, _any_of(names)) for source in [*sources, raw]]):
            return
    raise StoreBusy("other processes record these trajectories", place=connection.place, remedy="Try again.")


def _any_of(trajectory_ids: Sequence[str]) -> Condition:
    return On.by_property("trajectory_id").contains_any(list(trajectory_ids))


async def drop_namespace(connection: Connection, namespace: str) -> None:
    """Remove a namespace's tenants, passages first, and its small values."""
    for name in [*await connection.passage_collections(), connection.name(TRAJECTORIES)]:
        tenants = connection.client.collections.use(name).tenants
        if await tenants.exists(tenant(namespace)):
            await tenants.remove(tenant(namespace))
    await remove(connection.values(), On.by_property("namespace").equal(namespace))
    connection.known.forget(namespace)
