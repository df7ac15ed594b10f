"""Rebuilding all projections of a namespace."""

from __future__ import annotations

import numpy as np
import pytest
from store_helpers import EMBEDDER, episode, passages_of, record, vector, vectors

from rag_tuned_memory.embedding.base import EmbedderIdentity
from rag_tuned_memory.errors import InvalidVector
from rag_tuned_memory.store import EpisodeStore, Projection
from rag_tuned_memory.trajectory import Trajectory

pytestmark = pytest.mark.anyio

OTHER = EmbedderIdentity(model="other", revision="1", dimension=4)


def projection(trajectory: Trajectory, *, bad: bool = False) -> Projection:
    passages = passages_of(trajectory)
    made = np.array([vector(one.indexed, OTHER.dimension) for one in passages], dtype=np.float32)
    if bad:
        made[0, 0] = np.nan
    return Projection(trajectory.id, trajectory.content_hash, passages, made)


async def found(store: EpisodeStore, namespace: str, text: str, dimension: int) -> list[str]:
    candidates = await store.candidates(namespace, text, vector(text, dimension), limit=1)
    return [one.passage.text for one in candidates if one.dense and one.dense > 0.99]


async def test_all_vectors_change_at_once(store: EpisodeStore) -> None:
    one, two = episode("a", "1", "red fox", "blue sky"), episode("a", "2", "green tea")
    for trajectory in (one, two):
        await record(store, trajectory)
    await record(store, episode("b", "1", "red fox"))
    before = [s.sequence async for s in store.scan("a")]
    assert await store.rebuild("a", [projection(one), projection(two)], OTHER) == []
    assert await store.embedder("a") == OTHER
    assert await store.embedder("b") == EMBEDDER
    assert await found(store, "a", "blue sky", OTHER.dimension) == ["blue sky"]
    assert await found(store, "b", "red fox", EMBEDDER.dimension) == ["red fox"]
    assert [s.sequence async for s in store.scan("a")] == before
    assert await store.check() == []


@pytest.mark.parametrize("which", ["missing", "changed"])
async def test_what_is_not_covered_is_named_and_nothing_changes(store: EpisodeStore, which: str) -> None:
    one, two = episode("a", "1", "red fox"), episode("a", "2", "green tea")
    for trajectory in (one, two):
        await record(store, trajectory)
    old = [] if which == "missing" else [projection(episode("a", "2", "black tea"))]
    assert await store.rebuild("a", [projection(one), *old], OTHER) == [two.id]
    assert await store.embedder("a") == EMBEDDER
    assert await found(store, "a", "green tea", EMBEDDER.dimension) == ["green tea"]


async def test_what_was_deleted_meanwhile_does_not_come_back(store: EpisodeStore) -> None:
    one, two = episode("a", "1", "red fox"), episode("a", "2", "green tea")
    for trajectory in (one, two):
        await record(store, trajectory)
    await store.delete("a", [two.id])
    assert await store.rebuild("a", [projection(one), projection(two)], OTHER) == []
    assert (await store.stats("a")).passages == 1


async def test_bad_vectors_change_nothing(store: EpisodeStore) -> None:
    one, two = episode("a", "1", "red fox"), episode("a", "2", "green tea")
    for trajectory in (one, two):
        await record(store, trajectory)
    with pytest.raises(InvalidVector):
        await store.rebuild("a", [projection(one), projection(two, bad=True)], OTHER)
    assert await store.embedder("a") == EMBEDDER
    assert await found(store, "a", "red fox", EMBEDDER.dimension) == ["red fox"]
    assert await store.check() == []


async def test_afterwards_it_is_written_as_ever(store: EpisodeStore) -> None:
    one = episode("a", "1", "red fox")
    await record(store, one)
    await store.rebuild("a", [Projection(one.id, one.content_hash, passages_of(one), vectors(["red fox"]))], EMBEDDER)
    await record(store, episode("a", "1", "red fox", "blue sky"))
    await record(store, episode("a", "3", "new"))
    assert (await store.stats("a")).passages == 3
    assert await store.check() == []


async def test_a_namespace_that_holds_nothing(store: EpisodeStore) -> None:
    assert await store.rebuild("nobody", [], OTHER) == []
