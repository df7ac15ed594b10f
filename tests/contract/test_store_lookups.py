"""Passages by key, headings, and whose vectors a namespace holds."""

from __future__ import annotations

import numpy as np
import pytest
from store_helpers import EMBEDDER, day, episode, record, succeeded, vector

from rag_tuned_memory.errors import InvalidVector
from rag_tuned_memory.store import EpisodeStore, Heading
from rag_tuned_memory.trajectory import Outcome

pytestmark = pytest.mark.anyio


async def test_passages_are_found_by_key_with_their_cosine(store: EpisodeStore) -> None:
    first, second = episode("alice", "1", "a", "b", "c"), episode("alice", "2", "d")
    for one in (first, second):
        await record(store, one)
    keys = [(first.id, 2, 0), (second.id, 0, 0), (first.id, 0, 0), (first.id, 0, 0), (first.id, 9, 0), ("none", 0, 0)]
    found = await store.candidates_at("alice", keys, vector("a"))
    assert [c.passage.key for c in found] == sorted([(first.id, 0, 0), (first.id, 2, 0), (second.id, 0, 0)])
    for candidate in found:
        assert candidate.bm25 is None
        assert candidate.dense == pytest.approx(float(vector(candidate.passage.text) @ vector("a")), abs=1e-5)


async def test_no_passage_is_found_from_another_namespace(store: EpisodeStore) -> None:
    one = episode("alice", "1", "a")
    await record(store, one)
    await record(store, episode("bob", "1", "b"))
    assert await store.candidates_at("bob", [(one.id, 0, 0)], vector("a")) == []
    assert await store.candidates_at("nobody", [(one.id, 0, 0)], vector("a")) == []
    assert await store.headings("bob", [one.id]) == {}


async def test_a_bad_vector_is_refused(store: EpisodeStore) -> None:
    one = episode("alice", "1", "a")
    await record(store, one)
    with pytest.raises(InvalidVector, match="NaN"):
        await store.candidates_at("alice", [(one.id, 0, 0)], np.full(EMBEDDER.dimension, np.nan, dtype=np.float32))


async def test_headings_say_what_the_trajectory_says(store: EpisodeStore) -> None:
    told = episode(
        "alice", "1", "a", goal="find it", started_at=day(3), outcome=Outcome(success=True, score=0.5, feedback="good")
    )
    bare = episode("alice", "2", "b")
    for one in (told, bare):
        await record(store, one)
    assert await store.headings("alice", [told.id, bare.id, "none"]) == {
        told.id: Heading(told.id, "find it", told.outcome, day(3), told.source, told.content_hash),
        bare.id: Heading(bare.id, "", Outcome(), None, bare.source, bare.content_hash),
    }


async def test_a_replaced_trajectory_has_its_new_heading(store: EpisodeStore) -> None:
    await record(store, episode("alice", "1", "a", outcome=succeeded(False)))
    changed = episode("alice", "1", "a", outcome=succeeded(True))
    await record(store, changed)
    assert (await store.headings("alice", [changed.id]))[changed.id].outcome.success is True


async def test_the_embedder_is_known_while_there_are_vectors(store: EpisodeStore) -> None:
    assert await store.embedder("alice") is None
    one = episode("alice", "1", "a")
    await record(store, one)
    assert await store.embedder("alice") == EMBEDDER
    assert await store.embedder("bob") is None
    await store.delete("alice", [one.id])
    assert await store.embedder("alice") is None
