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

from weaviate.classes.query import Filter as On

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
from rag_tuned_memory.store.weaviate.records import generations, record, records, search_with, searched
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
    changed: bool | None = None
    """Whether anything changed; None until it is done."""

    @property
    def name(self) -> str:
        """The trajectory's id."""
        return self.record.trajectory.id

    @property
    def own(self) -> str:
        """The generation that is written. ``parent`` must be known."""
        assert self.parent is not None
        return generation(self.record.content_hash, self.parent)


async def put(connection: Connection, write: Write, clock: Clock) -> bool:
    """Write a record; returns whether anything changed.

    Raises:
        EmbedderMismatch: the namespace holds vectors of another embedder.
        StoreBusy: other processes changed the same trajectory again and again meanwhile.
    """
    await _look(connection, [write])
    if write.changed is not None:
        return write.changed
    source = await _source(connection, write)
    sent = await asyncio.to_thread(_passages_sent, write)
    try:
        await write_all(source, sent, connection.place)
        await write_all(connection.trajectories(write.record.namespace), [_raw(write, clock)], connection.place)
        if write.parent:
            await remove(source, version(write.name, write.parent))
        await _confirm(connection, write, source, sent)
    except BaseException:
        await asyncio.shield(_undo(connection, [write], source))
        raise
    _done(connection, [write])
    return True


async def put_many(connection: Connection, writes: Sequence[Write], clock: Clock) -> None:
    """As ``put`` for each; those of a namespace that replace nothing share their requests.

    Raises:
        EmbedderMismatch, StoreBusy: as ``put``; some may be written.
    """
    by_namespace: dict[str, dict[str, Write]] = {}
    for write in writes:  # the first of each id; a second one replaces it, so it goes by itself
        by_namespace.setdefault(write.record.namespace, {}).setdefault(write.name, write)
    for together in by_namespace.values():
        left = [write for write in together.values() if write.changed is None]
        await _look(connection, left)
        fresh = [write for write in left if write.changed is None and not write.parent]
        if len(fresh) > 1:
            await _put_fresh(connection, fresh, clock)
    for write in writes:
        if write.changed is None:
            await put(connection, write, clock)


async def _look(connection: Connection, writes: Sequence[Write]) -> None:
    """See what each of a namespace replaces, and which are there already; a second try does not ask again."""
    new = [write for write in writes if write.parent is None]
    if not new:
        return
    first = new[0].record
    stored, identity = await asyncio.gather(
        records(connection, first.namespace, [write.name for write in new], ["content_hash", "generation"]),
        searched(connection, first.namespace),
    )
    same = identity == first.embedder
    if not same:
        await _use_embedder(connection, first, identity)
    for write in new:
        found = stored.get(write.name)
        if found is not None and same and found["content_hash"] == write.record.content_hash:
            write.changed = False
        else:
            write.parent = found["generation"] if found else ""


async def _put_fresh(connection: Connection, writes: Sequence[Write], clock: Clock) -> None:
    """Write records of one namespace that replace nothing, in the order of ``put``, each step for all together."""
    source = await _source(connection, writes[0])
    sent = await asyncio.to_thread(lambda: [_passages_sent(write) for write in writes])
    try:
        await write_all(source, [one for some in sent for one in some], connection.place)
        raw = [_raw(write, clock) for write in writes]
        await write_all(connection.trajectories(writes[0].record.namespace), raw, connection.place)
        if not await _all_there(connection, writes, source):
            for write, some in zip(writes, sent, strict=True):
                await _confirm(connection, write, source, some)
    except BaseException:
        await asyncio.shield(_undo(connection, writes, source))
        raise
    _done(connection, writes)


def _done(connection: Connection, writes: Sequence[Write]) -> None:
    """Who writes into a namespace also searches it: these versions need not be asked for then."""
    for write in writes:
        write.changed = True
    connection.known.add(writes[0].record.namespace, [(write.name, write.own) for write in writes])


async def _source(connection: Connection, write: Write) -> Objects:
    """Where its passages go."""
    return connection.passages(await connection.ensure_passages(write.record.embedder), write.record.namespace)


async def _use_embedder(connection: Connection, record_: Record, identity: EmbedderIdentity | None) -> None:
    if identity is not None and await embedder_of(connection, record_.namespace) is not None:
        raise mismatch(record_.namespace, identity, record_.embedder, connection.place)
    await search_with(connection, record_.namespace, record_.embedder)


def _passages_sent(write: Write) -> list[Sent]:
    record_ = write.record
    return passages_sent(record_.trajectory, record_.passages, record_.vectors, write.own)


def _raw(write: Write, clock: Clock) -> Sent:
    properties = write.record.properties | {
        "generation": write.own,
        "sequence": clock.next(write.after),
        "recorded_at": microseconds(datetime.now(UTC)),
        "passages": len(write.record.passages),
    }
    label = f"trajectory {write.name}"
    return Sent(object_id("trajectory", write.name), properties, label, size=properties["bytes"])


async def _all_there(connection: Connection, writes: Sequence[Write], source: Objects) -> bool:
    """Whether what was written together is what is there."""
    first = writes[0].record
    stored, identity, there = await asyncio.gather(
        generations(connection, first.namespace, [write.name for write in writes]),
        searched(connection, first.namespace),
        count(source, On.by_property("generation").contains_any([write.own for write in writes])),
    )
    passages = sum(len(write.record.passages) for write in writes)
    own = {write.name: write.own for write in writes}
    return identity in (None, first.embedder) and stored == own and there == passages


async def _confirm(connection: Connection, write: Write, source: Objects, sent: Sequence[Sent]) -> None:
    """See that what was written is what is there; another process may have removed, replaced or re-embedded it."""
    record_, own = write.record, write.own
    for _ in range(_ROUNDS):
        stored, identity, there = await asyncio.gather(
            record(connection, record_.namespace, write.name, ["generation"]),
            searched(connection, record_.namespace),
            count(source, version(write.name, own)),
        )
        if identity is not None and identity != record_.embedder:
            raise mismatch(record_.namespace, identity, record_.embedder, connection.place)
        if stored is None or stored["generation"] != own:  # removed or replaced since: that came later, and stands
            await remove(source, version(write.name, own))
            return
        if there == len(sent):
            return
        await write_all(source, sent, connection.place)
    raise StoreBusy("other processes change this trajectory", place=connection.place, remedy="Try again.")


async def _undo(connection: Connection, writes: Sequence[Write], source: Objects) -> None:
    """Take back writes that failed, as far as the server lets us; `rtm doctor` finds what is left."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_UNDO_SECONDS):
            stored = await generations(connection, writes[0].record.namespace, [write.name for write in writes])
            for write in writes:
                if stored.get(write.name) != write.own:  # else the record was written, only cleaning up failed
                    await remove(source, version(write.name, write.own))
