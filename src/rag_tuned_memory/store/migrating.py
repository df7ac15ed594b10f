"""Moving episodes from one store to another, with their vectors: nothing is embedded again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from rag_tuned_memory.errors import StoreError
from rag_tuned_memory.store.base import Entry, EpisodeStore, Heading, StoredTrajectory
from rag_tuned_memory.store.checks import mismatch


@dataclass(slots=True)
class Migrated:
    """What became of a namespace: ``moved`` trajectories were written, ``unchanged`` ones were there already."""

    namespace: str
    moved: int = 0
    unchanged: int = 0


_TRAJECTORIES_AT_ONCE = 64
_PASSAGES_AT_ONCE = 500

OnMoved = Callable[[str, int, int], None]
"""Called with the namespace, the trajectories done, and all of them."""


async def migrate(
    source: EpisodeStore, target: EpisodeStore, namespace: str, *, progress: OnMoved | None = None
) -> Migrated:
    """Copy a namespace, some trajectories at a time, in order; then compare the content hashes of both stores.

    The source is only read. Run again after an interruption, it goes on where it was: what is there is not written
    twice. Sequences in the target are at least those of the source, so that no watermark runs ahead of them.

    Raises:
        EmbedderMismatch: the target holds vectors of another embedder for this namespace.
        StoreError: the source changed, or the target lost something, while they were compared; names trajectories.
    """
    done = Migrated(namespace)
    total = (await source.stats(namespace)).trajectories
    embedder = await source.embedder(namespace)
    if embedder is None and total:
        remedy = "Run `rtm reindex` on the source first."
        raise StoreError("it holds no vectors to move", place=f"namespace {namespace!r}", remedy=remedy)
    present = await target.embedder(namespace)
    if embedder is not None and present not in (None, embedder):
        raise mismatch(namespace, present, embedder, "the target")
    entries: list[Entry] = []

    async def flush() -> None:
        assert embedder is not None
        for changed in await target.put_many(entries, embedder):
            done.moved += changed
            done.unchanged += not changed
        entries.clear()

    async for some in _batches(source, namespace):
        there = await target.headings(namespace, [one.trajectory.id for one in some])
        for stored in some:
            if _same(stored, there):
                done.unchanged += 1
                continue
            projection = await source.projection(namespace, stored.trajectory.id)
            entries.append(Entry(stored.trajectory, projection.passages, projection.vectors, stored.sequence - 1))
            if sum(len(one.passages) for one in entries) >= _PASSAGES_AT_ONCE:
                await flush()
        if entries:
            await flush()
        if progress is not None:
            progress(namespace, done.moved + done.unchanged, total)
    await _compare(source, target, namespace)
    return done


async def _compare(source: EpisodeStore, target: EpisodeStore, namespace: str) -> None:
    differing: list[str] = []
    async for some in _batches(source, namespace):
        there = await target.headings(namespace, [one.trajectory.id for one in some])
        differing += [one.trajectory.id for one in some if not _same(one, there)]
    if differing:
        raise StoreError(
            f"{len(differing)} trajectories differ in the target: {', '.join(differing[:5])}",
            place=f"namespace {namespace!r}",
            remedy="The source changed meanwhile, or the target lost them: run the same command again.",
        )


async def _batches(source: EpisodeStore, namespace: str) -> AsyncIterator[list[StoredTrajectory]]:
    """All trajectories, some at a time."""
    some: list[StoredTrajectory] = []
    async for stored in source.scan(namespace):
        some.append(stored)
        if len(some) == _TRAJECTORIES_AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def _same(stored: StoredTrajectory, there: Mapping[str, Heading]) -> bool:
    found = there.get(stored.trajectory.id)
    return found is not None and found.content_hash == stored.content_hash
