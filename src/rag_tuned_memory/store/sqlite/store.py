"""The store itself: each method runs one function of this package's other modules in a worker thread."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import apsw

from rag_tuned_memory.embedding.base import EmbedderIdentity, Vectors
from rag_tuned_memory.errors import StoreCorrupt
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
from rag_tuned_memory.store.sqlite import integrity, reading, rebuilding, search, writing
from rag_tuned_memory.store.sqlite.connection import MEMORY, Pool
from rag_tuned_memory.trajectory import Trajectory, validate_namespace

T = TypeVar("T")

_READERS = 4
_PAGE = 64


class SqliteStore:
    """An ``EpisodeStore`` in one SQLite file (write-ahead log, ``synchronous=FULL``: a write that returned is on disk).

    The file is opened, and made if need be, by the first call. ``path`` may be ``:memory:``. ``busy_timeout`` is how
    many seconds to wait for another process's write; ``max_bytes`` bounds the file's size (StoreFull beyond it);
    ``exact_passages`` is up to how many passages dense search is exact rather than by signatures first.

    A call that is cancelled while its thread works finishes this work first: it is done wholly or not at all.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        busy_timeout: float = 10.0,
        max_bytes: int | None = None,
        exact_passages: int = search.EXACT_PASSAGES,
    ) -> None:
        self.path = str(path) if str(path) == MEMORY else str(Path(path).expanduser())
        self._exact_passages = exact_passages
        self._pool = Pool(self.path, readers=_READERS, busy_timeout=busy_timeout, max_bytes=max_bytes)
        self._reading = _Limit(_READERS)
        self._writing = _Limit(1)

    async def put(
        self,
        trajectory: Trajectory,
        passages: Sequence[Passage],
        vectors: Vectors,
        embedder: EmbedderIdentity,
        *,
        after: int = 0,
    ) -> bool:
        """Write a trajectory and its passages in one transaction; see ``EpisodeStore.put``."""
        record = await anyio.to_thread.run_sync(writing.prepare, trajectory, passages, vectors, embedder)
        return await self._write(lambda db: writing.put(db, record, self.path, after=after))

    async def put_many(self, entries: Sequence[Entry], embedder: EmbedderIdentity) -> list[bool]:
        """As ``put`` for each entry, all in one transaction; see ``EpisodeStore.put_many``."""
        records = await anyio.to_thread.run_sync(
            lambda: [
                (writing.prepare(one.trajectory, one.passages, one.vectors, embedder), one.after) for one in entries
            ]
        )
        return await self._write(lambda db: [writing.put(db, one, self.path, after=after) for one, after in records])

    async def get(self, namespace: str, trajectory_id: str) -> StoredTrajectory:
        """Raises TrajectoryNotFound."""
        validate_namespace(namespace)
        return await self._read(lambda db: reading.get(db, self.path, namespace, trajectory_id))

    async def scan(
        self, namespace: str, *, after: int = 0, where: Filter = NO_FILTER
    ) -> AsyncIterator[StoredTrajectory]:
        """All trajectories with ``sequence > after``, in order of sequence.

        Each page is a read of its own, so a slow consumer holds no lock and sees what is written meanwhile.
        ``since``, ``until`` and ``tool`` keep trajectories with a passage that meets all of them.
        """
        validate_namespace(namespace)
        while True:
            read = partial(reading.page, path=self.path, namespace=namespace, after=after, where=where, size=_PAGE)
            found = await self._read(read)
            for stored in found:
                yield stored
            if len(found) < _PAGE:
                return
            after = found[-1].sequence

    async def candidates(
        self, namespace: str, text: str, vector: Vectors, *, limit: int, where: Filter = NO_FILTER
    ) -> list[Candidate]:
        """Up to ``limit`` passages of each signal, best cosine first; see ``EpisodeStore.candidates``.

        Raises:
            InvalidVector: NaN, infinity, or another dimension than the namespace's vectors.
            InvalidInput: a negative limit, or text that is not valid UTF-8.
        """
        validate_namespace(namespace)
        query = search.Query(text, vector, limit, where, self._exact_passages)
        return await self._read(lambda db: search.candidates(db, namespace, query))

    async def passages(self, namespace: str, trajectory_id: str) -> list[Passage]:
        """All passages of one trajectory in reading order; empty when there is none."""
        validate_namespace(namespace)
        return await self._read(lambda db: reading.passages(db, namespace, trajectory_id))

    async def projection(self, namespace: str, trajectory_id: str) -> Projection:
        """All passages of one trajectory with their vectors. Raises TrajectoryNotFound."""
        validate_namespace(namespace)
        return await self._read(lambda db: reading.projection(db, self.path, namespace, trajectory_id))

    async def candidates_at(
        self, namespace: str, keys: Sequence[tuple[str, int, int]], vector: Vectors
    ) -> list[Candidate]:
        """The passages with these keys and their cosine to ``vector``, ordered by key; keys of nothing are left out.

        Raises:
            InvalidVector: NaN, infinity, or another dimension than the namespace's vectors.
        """
        validate_namespace(namespace)
        return await self._read(lambda db: search.candidates_at(db, namespace, keys, vector))

    async def headings(self, namespace: str, trajectory_ids: Sequence[str]) -> dict[str, Heading]:
        """Headings by trajectory id; ids that are not there are left out."""
        validate_namespace(namespace)
        return await self._read(lambda db: reading.headings(db, self.path, namespace, trajectory_ids))

    async def embedder(self, namespace: str) -> EmbedderIdentity | None:
        """Whose vectors the namespace holds; None while it holds none."""
        validate_namespace(namespace)
        return await self._read(lambda db: reading.embedder(db, namespace))

    async def mentions(self, namespace: str, phrase: str) -> int:
        """In how many trajectories the exact phrase occurs (case-insensitive, whole words)."""
        validate_namespace(namespace)
        return await self._read(lambda db: search.mentions(db, namespace, phrase))

    async def delete(self, namespace: str, trajectory_ids: Sequence[str]) -> list[str]:
        """Remove trajectories with everything derived from them; returns the ids that were there.

        Their bytes are overwritten in the file, and taken out of its log as soon as no reader needs it.
        """
        validate_namespace(namespace)
        names = checked_ids(trajectory_ids)
        removed = await self._write(lambda db: writing.delete(db, namespace, names), bounded=False)
        if removed:
            await anyio.to_thread.run_sync(self._pool.checkpoint, limiter=self._writing.get())
        return removed

    async def drop_namespace(self, namespace: str) -> None:
        """Remove all that a namespace holds, in one transaction; see ``EpisodeStore.drop_namespace``."""
        validate_namespace(namespace)
        await self._write(lambda db: writing.drop_namespace(db, namespace))

    async def rebuild(self, namespace: str, projections: Sequence[Projection], embedder: EmbedderIdentity) -> list[str]:
        """Replace everything derived from the trajectories of a namespace; see ``EpisodeStore.rebuild``."""
        validate_namespace(namespace)
        return await self._write(lambda db: rebuilding.rebuild(db, namespace, projections, embedder))

    async def namespaces(self) -> list[str]:
        """Namespaces that hold a trajectory, sorted."""
        return await self._read(reading.namespaces)

    async def stats(self, namespace: str) -> StoreStats:
        """What a namespace holds; zeros for one that holds nothing."""
        validate_namespace(namespace)
        return await self._read(lambda db: reading.stats(db, namespace))

    async def get_meta(self, namespace: str, key: str) -> str | None:
        """The value kept under a namespace's key, if any."""
        validate_namespace(namespace)
        return await self._read(lambda db: reading.get_meta(db, namespace, key))

    async def set_meta(self, namespace: str, key: str, value: str | None) -> None:
        """Keep ``value`` under a namespace's key; None removes it."""
        validate_namespace(namespace)
        await self._write(lambda db: writing.set_meta(db, namespace, key, value))

    async def check(self) -> list[str]:
        """Problems found, each a sentence with its remedy; empty when all is well.

        Reads everything and keeps writers waiting meanwhile.
        """
        try:
            return await self._write(lambda db: list(integrity.problems(db, self.path)))
        except StoreCorrupt as error:
            return [str(error)]

    async def mend(self) -> list[str]:
        """Nothing: a write is a transaction, and a killed one leaves nothing behind."""
        return []

    async def close(self) -> None:
        """Close the file once running calls are done; closing twice is allowed."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._pool.close)

    async def _read(self, work: Callable[[apsw.Connection], T]) -> T:
        def run() -> T:
            with self._pool.reader() as db:
                return work(db)

        return await anyio.to_thread.run_sync(run, limiter=self._reading.get())

    async def _write(self, work: Callable[[apsw.Connection], T], *, bounded: bool = True) -> T:
        def run() -> T:
            with self._pool.writer(bounded=bounded) as db:
                return work(db)

        return await anyio.to_thread.run_sync(run, limiter=self._writing.get())


class _Limit:
    """A capacity limiter for each event loop that uses the store.

    Tasks wait here rather than in threads, which other work of the program needs.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("limiter")

    def get(self) -> anyio.CapacityLimiter:
        try:
            return self._limiter.get()
        except LookupError:
            limiter = anyio.CapacityLimiter(self._tokens)
            self._limiter.set(limiter)
            return limiter
