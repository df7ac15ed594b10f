"""Recording trajectories in an order that a killed process cannot turn into a half one.

Passages are written first, under a generation of their own; the raw record that names this generation is then written
as one object, which makes the trajectory what it now is; only then are the passages of the generation before removed.
Readers pass over passages of any other generation, so at no time is anything seen that does not belong together.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rag_tuned_memory.embedding.base import EmbedderIdentity, Vectors
from rag_tuned_memory.errors import StoreBusy
from rag_tuned_memory.store.base import Passage
from rag_tuned_memory.store.checks import checked_passages, mismatch
from rag_tuned_memory.store.values import microseconds
from rag_tuned_memory.store.weaviate import objects
from rag_tuned_memory.store.weaviate.batch import Sent, write_all
from rag_tuned_memory.store.weaviate.clock import Clock
from rag_tuned_memory.store.weaviate.connection import Connection, Objects
from rag_tuned_memory.store.weaviate.fetching import count
from rag_tuned_memory.store.weaviate.names import generation, object_id
from rag_tuned_memory.store.weaviate.records import embedder as embedder_of
from rag_tuned_memory.store.weaviate.records import record, search_with, searched
from rag_tuned_memory.store.weaviate.removing import remove, version
from rag_tuned_memory.store.weaviate.schema import VECTOR
from rag_tuned_memory.trajectory import Trajectory

_ROUNDS = 5
"""So often a write that another process crossed is done again."""
_UNDO_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Record:
    """A trajectory made ready for writing: everything checked and serialised before the server is asked."""

    trajectory: Trajectory
    content_hash: str
    properties: objects.Properties
    passages: Sequence[Passage]
    vectors: Vectors
    embedder: EmbedderIdentity

    @property
    def namespace(self) -> str:
        """Whose trajectory it is."""
        return self.trajectory.namespace


def prepare(
    trajectory: Trajectory, passages: Sequence[Passage], vectors: Vectors, embedder: EmbedderIdentity
) -> Record:
    """Check and serialise. Blocking. Raises as ``checked_passages`` does."""
    array = checked_passages(trajectory.id, passages, vectors, embedder)
    properties = objects.trajectory_properties(trajectory)
    return Record(trajectory, trajectory.content_hash, properties, passages, array, embedder)


def passages_sent(
    trajectory: Trajectory, passages: Sequence[Passage], vectors: Vectors, generation_: str
) -> list[Sent]:
    """The objects of a trajectory's passages in one generation. Blocking."""
    sent = []
    for one, vector in zip(passages, vectors, strict=True):
        properties = objects.passage_properties(one, trajectory, generation_)
        sent.append(
            Sent(
                id=object_id("passage", one.trajectory_id, generation_, one.step, one.chunk),
                properties=properties,
                label=f"step {one.step} of trajectory {one.trajectory_id}",
                vector={VECTOR: vector.tolist()},
                size=properties["bytes"] + len(properties["terms"]) + vector.nbytes,
            )
        )
    return sent


@dataclass(slots=True)
class Write:
    """A record on its way. Tried again after a failure, it goes on, and does not take its first try for another's."""

    record: Record
    after: int = 0
    """Its sequence is greater than this."""
    parent: str | None = None
    """The generation that it replaces, empty for none; None until that is known."""


async def put(connection: Connection, write: Write, clock: Clock) -> bool:
    """Write a record; returns whether anything changed.

    Raises:
        EmbedderMismatch: the namespace holds vectors of another embedder.
        StoreBusy: other processes changed the same trajectory again and again meanwhile.
    """
    record_, name = write.record, write.record.trajectory.id
    if write.parent is None:
        stored, identity = await asyncio.gather(
            record(connection, record_.namespace, name, ["content_hash", "generation"]),
            searched(connection, record_.namespace),
        )
        if identity != record_.embedder:
            await _use_embedder(connection, record_, identity)
        elif stored is not None and stored["content_hash"] == record_.content_hash:
            return False
        write.parent = stored["generation"] if stored else ""
    own = generation(record_.content_hash, write.parent)
    source = connection.passages(await connection.ensure_passages(record_.embedder), record_.namespace)
    sent = await asyncio.to_thread(passages_sent, record_.trajectory, record_.passages, record_.vectors, own)
    raw = _raw(record_, own, clock.next(write.after))
    try:
        await write_all(source, sent, connection.place)
        await write_all(connection.trajectories(record_.namespace), [raw], connection.place)
        if write.parent:
            await remove(source, version(name, write.parent))
        await _confirm(connection, record_, source, sent, own)
    except BaseException:
        await asyncio.shield(_undo(connection, record_, source, own))
        raise
    return True


async def _use_embedder(connection: Connection, record_: Record, identity: EmbedderIdentity | None) -> None:
    if identity is not None and await embedder_of(connection, record_.namespace) is not None:
        raise mismatch(record_.namespace, identity, record_.embedder, connection.place)
    await search_with(connection, record_.namespace, record_.embedder)


def _raw(record_: Record, own: str, sequence: int) -> Sent:
    properties = record_.properties | {
        "generation": own,
        "sequence": sequence,
        "recorded_at": microseconds(datetime.now(UTC)),
        "passages": len(record_.passages),
    }
    name = record_.trajectory.id
    return Sent(object_id("trajectory", name), properties, f"trajectory {name}", size=properties["bytes"])


async def _confirm(connection: Connection, record_: Record, source: Objects, sent: Sequence[Sent], own: str) -> None:
    """See that what was written is what is there; another process may have removed, replaced or re-embedded it."""
    namespace, name = record_.namespace, record_.trajectory.id
    for _ in range(_ROUNDS):
        stored, identity, there = await asyncio.gather(
            record(connection, namespace, name, ["generation"]),
            searched(connection, namespace),
            count(source, version(name, own)),
        )
        if identity is not None and identity != record_.embedder:
            raise mismatch(namespace, identity, record_.embedder, connection.place)
        if stored is None or stored["generation"] != own:  # removed or replaced since: that came later, and stands
            await remove(source, version(name, own))
            return
        if there == len(sent):
            return
        await write_all(source, sent, connection.place)
    raise StoreBusy("other processes change this trajectory", place=connection.place, remedy="Try again.")


async def _undo(connection: Connection, record_: Record, source: Objects, own: str) -> None:
    """Take back a write that failed, as far as the server lets us; `rtm doctor` finds what is left."""
    name = record_.trajectory.id
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_UNDO_SECONDS):
            stored = await record(connection, record_.namespace, name, ["generation"])
            if stored is None or stored["generation"] != own:  # else the record was written, only cleaning up failed
                await remove(source, version(name, own))
