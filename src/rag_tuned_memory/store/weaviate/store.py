"""The episode store on a Weaviate server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from math import inf
from typing import TypeVar

import anyio
import anyio.to_thread

from rag_tuned_memory.embedding.base import EmbedderIdentity, Vectors
from rag_tuned_memory.store.base import (
    NO_FILTER,
    Candidate,
    Entry,
    Filter,
    Heading,
    Passage,
    Projection,
    StoredTrajectory,
    StoreStats,
)
from rag_tuned_memory.store.checks import checked_ids
from rag_tuned_memory.store.weaviate import bridge, reading, rebuilding, records, removing, search, upkeep, writing
from rag_tuned_memory.store.weaviate.address import Address
from rag_tuned_memory.store.weaviate.clock import Clock
from rag_tuned_memory.store.weaviate.connection import Connection
from rag_tuned_memory.trajectory import Trajectory, validate_namespace

T = TypeVar("T")

_PAGE = 64
_PASSAGES_IN_TIME = 2000
"""An episode with more passages has more time in proportion."""


class WeaviateStore:
    """An ``EpisodeStore`` on Weaviate: a namespace is a tenant of native multi-tenancy.

    Connects with the first call, and makes its collections if they are not there. A call that is cancelled while it
    writes finishes this work first. May be used from several event loops and threads: the client has a loop of its own.
    """

    def __init__(self, address: Address, *, api_key: str | None = None) -> None:
        self.address = address
        self._api_key = api_key
        self._connection = Connection(address, api_key)
        self._clock = Clock()

    async def put(
        self,
        trajectory: Trajectory,
        passages: Sequence[Passage],
        vectors: Vectors,
        embedder: EmbedderIdentity,
        *,
        after: int = 0,
    ) -> bool:
        """Write a trajectory and its passages; see ``EpisodeStore.put``.

        Raises:
            StoreUnavailable: the server did not answer in time.
            StoreBusy: other processes changed the same trajectory again and again meanwhile.
        """
        record = await anyio.to_thread.run_sync(writing.prepare, trajectory, passages, vectors, embedder)
        write = writing.Write(record, after)
        times = 1 + len(passages) / _PASSAGES_IN_TIME
        return await self._write(lambda: writing.put(self._connection, write, self._clock), times=times)

    async def put_many(self, entries: Sequence[Entry], embedder: EmbedderIdentity) -> list[bool]:
        """As ``put`` for each entry; new ones of a namespace go together. See ``EpisodeStore.put_many``."""

        def prepared() -> list[writing.Write]:
            return [
                writing.Write(writing.prepare(one.trajectory, one.passages, one.vectors, embedder), one.after)
                for one in entries
            ]

        writes = await anyio.to_thread.run_sync(prepared)
        times = len(entries) + sum(len(one.passages) for one in entries) / _PASSAGES_IN_TIME
        await self._write(lambda: writing.put_many(self._connection, writes, self._clock), times=times)
        return [bool(write.changed) for write in writes]

    async def get(self, namespace: str, trajectory_id: str) -> StoredTrajectory:
        """Raises TrajectoryNotFound."""
        validate_namespace(namespace)
        return await self._read(lambda: reading.get(self._connection, namespace, trajectory_id))

    async def scan(
        self, namespace: str, *, after: int = 0, where: Filter = NO_FILTER
    ) -> AsyncIterator[StoredTrajectory]:
        """All trajectories with ``sequence > after``, in order of sequence, a page at a time.

        ``since``, ``until`` and ``tool`` keep trajectories with a passage that meets all of them.
        """
        validate_namespace(namespace)
        following: int | None = after
        while following is not None:
            page = partial(reading.page, self._connection, namespace, after=following, where=where, size=_PAGE)
            found, following = await self._read(page)
            for stored in found:
                yield stored

    async def candidates(
        self, namespace: str, text: str, vector: Vectors, *, limit: int, where: Filter = NO_FILTER
    ) -> list[Candidate]:
        """Up to ``limit`` passages of each signal, best cosine first; see ``EpisodeStore.candidates``.

        Raises:
            InvalidVector: NaN, infinity, or another dimension than the namespace's vectors.
            InvalidInput: a negative limit, or text that is not valid UTF-8.
        """
        validate_namespace(namespace)
        return await self._read(
            lambda: search.candidates(self._connection, namespace, text, vector, limit=limit, where=where)
        )

    async def passages(self, namespace: str, trajectory_id: str) -> list[Passage]:
        """All passages of one trajectory in reading order; empty when there is none."""
        validate_namespace(namespace)
        return await self._read(lambda: reading.passages(self._connection, namespace, trajectory_id))

    async def projection(self, namespace: str, trajectory_id: str) -> Projection:
        """All passages of one trajectory with their vectors. Raises TrajectoryNotFound."""
        validate_namespace(namespace)
        return await self._read(lambda: reading.projection(self._connection, namespace, trajectory_id))

    async def candidates_at(
        self, namespace: str, keys: Sequence[tuple[str, int, int]], vector: Vectors
    ) -> list[Candidate]:
        """The passages with these keys and their cosine to ``vector``, ordered by key; keys of nothing are left out.

        Raises:
            InvalidVector: NaN, infinity, or another dimension than the namespace's vectors.
        """
        validate_namespace(namespace)
        return await self._read(lambda: search.candidates_at(self._connection, namespace, keys, vector))

    async def headings(self, namespace: str, trajectory_ids: Sequence[str]) -> dict[str, Heading]:
        """Headings by trajectory id; ids that are not there are left out."""
        validate_namespace(namespace)
        return await self._read(lambda: reading.headings(self._connection, namespace, trajectory_ids))

    async def embedder(self, namespace: str) -> EmbedderIdentity | None:
        """Whose vectors the namespace holds; None while it holds none."""
        validate_namespace(namespace)
        return await self._read(lambda: records.embedder(self._connection, namespace))

    async def mentions(self, namespace: str, phrase: str) -> int:
        """In how many trajectories the exact phrase occurs (case-insensitive, whole words)."""
        validate_namespace(namespace)
        return await self._read(lambda: search.mentions(self._connection, namespace, phrase))

    async def delete(self, namespace: str, trajectory_ids: Sequence[str]) -> list[str]:
        """Remove trajectories with everything derived from them; returns the ids that were there.

        When it returns, queries have shown that nothing of them is left.
        """
        validate_namespace(namespace)
        removal = removing.Removal(namespace, checked_ids(trajectory_ids))
        return await self._write(lambda: removing.delete(self._connection, removal), times=inf)

    async def drop_namespace(self, namespace: str) -> None:
        """Remove a namespace's tenants and small values; see ``EpisodeStore.drop_namespace``."""
        validate_namespace(namespace)
        await self._write(lambda: removing.drop_namespace(self._connection, namespace))

    async def rebuild(self, namespace: str, projections: Sequence[Projection], embedder: EmbedderIdentity) -> list[str]:
        """Replace everything derived from the trajectories of a namespace; see ``EpisodeStore.rebuild``.

        The namespace is searched with the old vectors until all new ones are there. The old ones stay until
        ``drop_unused``.
        """
        validate_namespace(namespace)
        return await self._write(
            lambda: rebuilding.rebuild(self._connection, namespace, projections, embedder), times=inf
        )

    async def drop_unused(self, namespace: str) -> list[EmbedderIdentity]:
        """Remove the vectors of a namespace that are no longer searched; whose they were."""
        validate_namespace(namespace)
        return await self._write(lambda: rebuilding.drop_unused(self._connection, namespace))

    async def namespaces(self) -> list[str]:
        """Namespaces that hold a trajectory, sorted."""
        return await self._read(lambda: reading.namespaces(self._connection), times=inf)

    async def stats(self, namespace: str) -> StoreStats:
        """What a namespace holds; zeros for one that holds nothing."""
        validate_namespace(namespace)
        return await self._read(lambda: reading.stats(self._connection, namespace))

    async def get_meta(self, namespace: str, key: str) -> str | None:
        """The value kept under a namespace's key, if any."""
        validate_namespace(namespace)
        return await self._read(lambda: records.get_value(self._connection, namespace, f"meta {key}"))

    async def set_meta(self, namespace: str, key: str, value: str | None) -> None:
        """Keep ``value`` under a namespace's key; None removes it."""
        validate_namespace(namespace)
        await self._write(lambda: records.set_value(self._connection, namespace, f"meta {key}", value))

    async def check(self) -> list[str]:
        """Problems found, each a sentence with its remedy; empty when all is well. Reads everything."""

        async def problems() -> list[str]:
            return [one async for one in upkeep.problems(self._connection)]

        return await self._read(problems, times=inf)

    async def mend(self) -> list[str]:
        """Remove what writes that were killed have left behind; says what was done, a sentence each."""
        return await self._write(lambda: upkeep.mend(self._connection), times=inf)

    async def close(self) -> None:
        """Close the connection; closing twice is allowed."""
        with anyio.CancelScope(shield=True):
            connection, self._connection = self._connection, Connection(self.address, self._api_key)
            await bridge.write(connection.close)

    async def _read(self, work: Callable[[], Awaitable[T]], *, times: float = 1) -> T:
        return await bridge.read(lambda: self._connection.call(work, times=times))

    async def _write(self, work: Callable[[], Awaitable[T]], *, times: float = 1) -> T:
        return await bridge.write(lambda: self._connection.call(work, times=times))
