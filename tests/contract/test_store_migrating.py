"""Moving a namespace from one store to another and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from store_helpers import EMBEDDER, day, episode, passages_of, record, succeeded, vector

from rag_tuned_memory.errors import EmbedderMismatch, StoreError
from rag_tuned_memory.store import EpisodeStore, open_store
from rag_tuned_memory.store.migrating import Migrated, migrate

pytestmark = pytest.mark.anyio


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[EpisodeStore]:
    opened = open_store(f"sqlite:///{tmp_path / 'other.db'}")
    yield opened
    await opened.close()


async def test_there_and_back_nothing_changes(store: EpisodeStore, other: EpisodeStore) -> None:
    episodes = [
        episode(
            "alice", str(i), f"disk {i} full", "emoji 🦊", tool="restart", started_at=day(i), outcome=succeeded(i > 2)
        )
        for i in range(5)
    ]
    for one in episodes:
        await record(store, one)
    await record(store, episode("bob", "1", "not alice's"))
    told: list[tuple[str, int, int]] = []
    moved = await migrate(store, other, "alice", progress=lambda *numbers: told.append(numbers))
    assert moved == Migrated("alice", moved=5, unchanged=0)
    assert told == [("alice", 5, 5)]
    assert await other.namespaces() == ["alice"]
    assert [stored.trajectory async for stored in other.scan("alice")] == episodes
    for one in episodes:
        there = await other.projection("alice", one.id)
        assert list(there.passages) == passages_of(one)
        assert there.vectors == pytest.approx(np.array([vector(p.indexed) for p in passages_of(one)]), abs=1e-6)
    query = vector("disk 3 full")
    assert [c.passage for c in await other.candidates("alice", "disk 3", query, limit=5)][:3] == [
        c.passage for c in await store.candidates("alice", "disk 3", query, limit=5)
    ][:3]
    assert await migrate(other, store, "alice") == Migrated("alice", moved=0, unchanged=5)
    assert await other.check() == []
    assert await store.check() == []


async def test_what_was_moved_already_is_not_moved_twice(store: EpisodeStore, other: EpisodeStore) -> None:
    await record(store, episode("alice", "1", "a"))
    await migrate(store, other, "alice")
    await record(store, episode("alice", "2", "b"))
    assert await migrate(store, other, "alice") == Migrated("alice", moved=1, unchanged=1)


async def test_sequences_do_not_fall_behind(store: EpisodeStore, other: EpisodeStore) -> None:
    for i in range(3):
        await record(store, episode("alice", str(i), "a"))
    before = [stored.sequence async for stored in store.scan("alice")]
    await migrate(store, other, "alice")
    after = [stored.sequence async for stored in other.scan("alice")]
    assert all(new >= old for new, old in zip(after, before, strict=True))
    await record(other, episode("alice", "new", "b"))
    assert [stored.trajectory.source_id async for stored in other.scan("alice", after=before[-1])][-1:] == ["new"]


async def test_a_target_of_another_embedder_is_refused(store: EpisodeStore, other: EpisodeStore) -> None:
    await record(store, episode("alice", "1", "a"))
    two = episode("alice", "2", "b")
    foreign = EMBEDDER.model_copy(update={"model": "other"})
    await other.put(two, passages_of(two), np.array([vector("b")]), foreign)
    with pytest.raises(EmbedderMismatch, match="rtm reindex"):
        await migrate(store, other, "alice")
    assert [stored.trajectory async for stored in other.scan("alice")] == [two]


async def test_episodes_without_vectors_are_refused_with_the_remedy(store: EpisodeStore, other: EpisodeStore) -> None:
    one = episode("alice", "1", "a")
    await store.put(one, [], np.zeros((0, 16), dtype=np.float32), EMBEDDER)
    with pytest.raises(StoreError, match="rtm reindex"):
        await migrate(store, other, "alice")


async def test_a_namespace_that_holds_nothing(store: EpisodeStore, other: EpisodeStore) -> None:
    assert await migrate(store, other, "nobody") == Migrated("nobody")
    assert await other.namespaces() == []
