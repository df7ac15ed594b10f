"""Rebuilding what is derived from a namespace's trajectories, by the present embedder and the present code.

Vectors are first made and kept beside the store, while the old ones serve; the store then changes over in one step.
Killed on the way, the next rebuild finds the vectors that are done.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
import numpy as np

from rag_tuned_memory.embedding.base import Embedder, Vectors, checked
from rag_tuned_memory.errors import StoreError, TrajectoryNotFound
from rag_tuned_memory.recall.engine import Recall
from rag_tuned_memory.recall.passages import build_passages
from rag_tuned_memory.store.base import Passage, Projection, StoredTrajectory
from rag_tuned_memory.trajectory import canonical_json

Progress = Callable[[int, int], None]

_TRIES = 100


async def reindex(engine: Recall, namespace: str, folder: Path, progress: Progress | None = None) -> int:
    """See ``AsyncMemory.reindex``. ``folder`` keeps the vectors until the change.

    Raises:
        StoreError: episodes are written faster than they are embedded, or ``folder`` cannot be used.
    """
    store = engine.store
    total = (await store.stats(namespace)).trajectories
    done: dict[str, Projection] = {}
    async for stored in store.scan(namespace):
        done[stored.trajectory.id] = await _project(engine.embedder, stored, folder)
        if progress is not None:
            progress(len(done), max(total, len(done)))
    identity = await anyio.to_thread.run_sync(lambda: engine.embedder.identity)
    for _ in range(_TRIES):
        stale = await store.rebuild(namespace, list(done.values()), identity)
        if not stale:
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
            return len(done)
        for trajectory_id in stale:
            try:
                stored = await store.get(namespace, trajectory_id)
            except TrajectoryNotFound:
                continue
            done[trajectory_id] = await _project(engine.embedder, stored, folder)
    raise StoreError(
        f"episodes of namespace {namespace!r} change faster than they can be embedded",
        remedy="Run it again while less is recorded; what is embedded so far is kept.",
    )


async def _project(embedder: Embedder, stored: StoredTrajectory, folder: Path) -> Projection:
    def begin() -> tuple[list[Passage], Path, Vectors | None]:
        passages = build_passages(stored.trajectory)
        dimension = embedder.identity.dimension
        texts = [embedder.identity.model_dump(mode="json"), [one.indexed for one in passages]]
        path = folder / f"{hashlib.sha256(canonical_json(texts)).hexdigest()}.npy"
        return passages, path, _kept(path, len(passages), dimension)

    passages, path, vectors = await anyio.to_thread.run_sync(begin)
    if vectors is None:
        made = await embedder.embed([one.indexed for one in passages]) if passages else np.zeros((0, 0))
        dimension = embedder.identity.dimension
        vectors = checked(made.reshape(len(passages), dimension), rows=len(passages), dimension=dimension)
        await anyio.to_thread.run_sync(_keep, path, vectors)
    return Projection(stored.trajectory.id, stored.content_hash, passages, vectors)


def _kept(path: Path, rows: int, dimension: int) -> Vectors | None:
    try:
        return checked(np.load(path, allow_pickle=False), rows=rows, dimension=dimension)
    except (OSError, ValueError, EOFError):  # not there, or cut off: it is made again
        return None


def _keep(path: Path, vectors: Vectors) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            np.save(stream, vectors)
        os.replace(partial, path)
    except OSError as error:
        raise StoreError(
            f"the rebuilt vectors cannot be kept: {error.strerror or error}",
            place=str(path.parent),
            remedy="Free some space, or point RTM_HOME elsewhere; nothing in the store has changed.",
        ) from error
