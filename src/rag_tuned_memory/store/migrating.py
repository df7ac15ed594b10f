"""Moving episodes from one store to another, with their vectors: nothing is embedded again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rag_tuned_memory.errors import StoreError
from rag_tuned_memory.store.base import EpisodeStore


@dataclass(slots=True)
class Migrated:
    """What became of a namespace: ``moved`` trajectories were written, ``unchanged`` ones were there already."""

    namespace: str
    moved: int = 0
    unchanged: int = 0


OnMoved = Callable[[str, int, int], None]
"""Called with the namespace, the trajectories done, and all of them."""


async def migrate(
    source: EpisodeStore, target: EpisodeStore, namespace: str, *, progress: OnMoved | None = None
) -> Migrated:
    """Copy a namespace, one trajectory at a time, in order; then compare the content hashes of both stores.

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
    async for stored in source.scan(namespace):
        projection = await source.projection(namespace, stored.trajectory.id)
        assert embedder is not None
        changed = await target.put(
            stored.trajectory, projection.passages, projection.vectors, embedder, after=stored.sequence - 1
        )
        done.moved += changed
        done.unchanged += not changed
        if progress is not None:
            progress(namespace, done.moved + done.unchanged, total)
    differing = [
        stored.trajectory.id
        async for stored in source.scan(namespace)
        if await _hash(target, namespace, stored.trajectory.id) != stored.content_hash
    ]
    if differing:
        raise StoreError(
            f"{len(differing)} trajectories differ in the target: {', '.join(differing[:5])}",
            place=f"namespace {namespace!r}",
            remedy="The source changed meanwhile, or the target lost them: run the same command again.",
        )
    return done


async def _hash(store: EpisodeStore, namespace: str, trajectory_id: str) -> str | None:
    found = (await store.headings(namespace, [trajectory_id])).get(trajectory_id)
    return None if found is None else found.content_hash
