"""What is put can be read, replaced and removed, in its own namespace only."""

from __future__ import annotations

from dataclasses import replace

import anyio
import numpy as np
import pytest
from store_helpers import EMBEDDER, day, entry, episode, passages_of, record, record_many, succeeded, vector, vectors

from rag_tuned_memory.errors import (
    EmbedderMismatch,
    InvalidInput,
    InvalidNamespace,
    InvalidVector,
    TrajectoryNotFound,
)
from rag_tuned_memory.store import EpisodeStore, Filter
from rag_tuned_memory.trajectory import Step, StepKind

pytestmark = pytest.mark.anyio

NAMESPACES = [
    "alice",
    "alice-smith",
    "ALICE",
    "alice/1",
    "*",
    "%",
    "ālice 東京 🦊",
    "a" * 64,
    "é",
    "e\u0301",
    "a' OR 1=1 --",
]


async def test_what_is_put_is_read_back(store: EpisodeStore) -> None:
    wanted = episode(
        "alice",
        "1",
        'disk "full"; DROP TABLE',
        "NUL \x00, emoji 🦊, 東京",
        outcome=succeeded(True),
        started_at=day(1),
        metadata={"n": 1, "nested": {"list": [1.5, None, "x", 10**30]}},
    )
    assert await record(store, wanted) is True
    stored = await store.get("alice", wanted.id)
    assert stored.trajectory == wanted
    assert stored.content_hash == wanted.content_hash
    assert stored.trajectory.content_hash == wanted.content_hash
    assert await store.passages("alice", wanted.id) == passages_of(wanted)
    assert await store.check() == []


async def test_the_same_content_changes_nothing(store: EpisodeStore) -> None:
    one = episode("alice", "1", "disk full")
    assert await record(store, one) is True
    before = await store.get("alice", one.id)
    assert await record(store, one) is False
    assert await store.get("alice", one.id) == before


async def test_other_content_under_the_same_id_replaces_all_of_it(store: EpisodeStore) -> None:
    old = episode("alice", "1", "disk full on orion", "restarted orion", "closed")
    new = episode("alice", "1", "disk full on orion", "replaced the disk", outcome=succeeded(True))
    await record(store, old)
    first = await store.get("alice", old.id)
    assert await record(store, new) is True
    second = await store.get("alice", old.id)
    assert (second.trajectory, second.sequence > first.sequence) == (new, True)
    assert await store.passages("alice", old.id) == passages_of(new)
    assert await store.mentions("alice", "restarted orion") == 0
    assert await store.mentions("alice", "replaced the disk") == 1
    assert (await store.stats("alice")).trajectories == 1
    assert await store.check() == []


async def test_feedback_added_to_an_episode_can_be_found(store: EpisodeStore) -> None:
    one = episode("alice", "1", "disk full", "freed space")
    await record(store, one)
    feedback = Step(kind=StepKind.FEEDBACK, text="that was the wrong disk", actor="user")
    more = one.model_copy(update={"steps": (*one.steps, feedback)})
    assert await record(store, more) is True
    found = await store.candidates("alice", "wrong disk", vector("that was the wrong disk"), limit=1)
    assert found[0].passage == passages_of(more)[2]
    assert found[0].dense == pytest.approx(1, abs=1e-6)
    assert await store.check() == []


async def test_many_are_put_at_once_as_each_would_be(store: EpisodeStore) -> None:
    old = episode("alice", "1", "disk full on orion")
    same = episode("alice", "2", "disk full on vega")
    for one in (old, same):
        await record(store, one)
    new = episode("alice", "1", "disk full on lyra", "cleared the logs")
    added = [episode("alice", str(number), f"incident {number}", "closed") for number in range(3, 9)]
    other = episode("bob", "1", "not alice's")
    twice = episode("alice", "3", "incident 3, told again")
    given = [new, same, *added, other, twice]
    assert await record_many(store, given) == [True, False, *(True for _ in added), True, True]
    for one in (new, same, *added[1:], other, twice):
        assert (await store.get(one.namespace, one.id)).trajectory == one
        assert await store.passages(one.namespace, one.id) == passages_of(one)
    assert await record_many(store, [new, same, *added[1:], other, twice]) == [False] * 9
    assert await record_many(store, []) == []
    assert await store.mentions("alice", "orion") == 0
    assert await store.check() == []


async def test_of_many_with_a_bad_one_none_is_written(store: EpisodeStore) -> None:
    good, bad = entry(episode("alice", "1", "disk full")), entry(episode("alice", "2", "disk full"))
    with pytest.raises(InvalidVector):
        await store.put_many([good, replace(bad, vectors=bad.vectors * np.nan)], EMBEDDER)
    assert await store.namespaces() == []


async def test_many_put_with_sequences_to_follow(store: EpisodeStore) -> None:
    after = 5 * 10**15
    await store.put_many([replace(entry(episode("alice", str(i), "x")), after=after + i) for i in range(3)], EMBEDDER)
    assert all(one.sequence > after for one in [stored async for stored in store.scan("alice")])


async def test_scan_streams_all_in_order_of_writing_and_goes_on_after_a_sequence(store: EpisodeStore) -> None:
    episodes = [episode("alice", str(i), f"incident {i}") for i in range(150)]
    for one in episodes:
        await record(store, one)
    await record(store, episode("bob", "1", "not alice's"))
    scanned = [stored async for stored in store.scan("alice")]
    assert [stored.trajectory for stored in scanned] == episodes
    sequences = [stored.sequence for stored in scanned]
    assert sequences == sorted(set(sequences))
    rest = [stored.trajectory async for stored in store.scan("alice", after=sequences[99])]
    assert rest == episodes[100:]


async def test_scan_filters(store: EpisodeStore) -> None:
    early = episode("alice", "early", "a", tool="restart", started_at=day(1), outcome=succeeded(False), source="x")
    late = episode("alice", "late", "b", started_at=day(5), outcome=succeeded(True), source="y")
    undated = episode("alice", "undated", "c")
    for one in (early, late, undated):
        await record(store, one)

    async def ids(**conditions: object) -> list[str | None]:
        where = Filter.model_validate(conditions)
        return [stored.trajectory.source_id async for stored in store.scan("alice", where=where)]

    assert await ids(since=day(1), until=day(5)) == ["early"]
    assert await ids(since=day(5)) == ["late"]
    assert await ids(tool="restart") == ["early"]
    assert await ids(success=True) == ["late"]
    assert await ids(success=False) == ["early"]
    assert await ids(source="y") == ["late"]
    assert await ids(trajectory_ids=frozenset({undated.id, late.id})) == ["late", "undated"]
    assert await ids(trajectory_ids=frozenset()) == []
    assert await ids(tool="restart", success=True) == []


async def test_a_scan_may_write_and_delete_while_it_runs(store: EpisodeStore) -> None:
    for i in range(70):
        await record(store, episode("alice", str(i), f"incident {i}"))
    seen = 0
    async for stored in store.scan("alice"):
        assert await store.delete("alice", [stored.trajectory.id]) == [stored.trajectory.id]
        seen += 1
    assert seen == 70
    assert await store.namespaces() == []


async def test_delete_removes_everything_and_names_what_was_there(store: EpisodeStore) -> None:
    one, two = episode("alice", "1", "the secret is tulip"), episode("alice", "2", "disk full")
    await record(store, one)
    await record(store, two)
    assert await store.delete("alice", ["none", one.id, one.id]) == [one.id]
    with pytest.raises(TrajectoryNotFound, match=one.id):
        await store.get("alice", one.id)
    assert await store.passages("alice", one.id) == []
    assert await store.mentions("alice", "tulip") == 0
    found = await store.candidates("alice", "tulip secret", vector("the secret is tulip"), limit=10)
    assert {c.passage.trajectory_id for c in found} == {two.id}
    assert await store.delete("alice", [one.id]) == []
    assert await store.check() == []
    assert await record(store, one) is True


async def test_sequences_go_on_growing_after_everything_was_deleted(store: EpisodeStore) -> None:
    one = episode("alice", "1", "disk full")
    await record(store, one)
    first = (await store.get("alice", one.id)).sequence
    await store.delete("alice", [one.id])
    await record(store, one)
    assert (await store.get("alice", one.id)).sequence > first


async def test_namespaces_share_nothing(store: EpisodeStore) -> None:
    ids = {}
    for name in NAMESPACES:
        one = episode(name, "1", f"the word of {NAMESPACES.index(name)} is here")
        ids[name] = one.id
        await record(store, one)
    assert len(set(ids.values())) == len(NAMESPACES)
    assert await store.namespaces() == sorted(NAMESPACES)
    for name in NAMESPACES:
        found = await store.candidates(name, "the word is here", vector("x"), limit=50)
        assert [c.passage.trajectory_id for c in found] == [ids[name]]
        assert [s.trajectory.id async for s in store.scan(name)] == [ids[name]]
        assert await store.mentions(name, "word") == 1
        assert (await store.stats(name)).trajectories == 1
        for other in NAMESPACES:
            if other != name:
                with pytest.raises(TrajectoryNotFound):
                    await store.get(name, ids[other])
                assert await store.passages(name, ids[other]) == []
    assert await store.delete("alice", list(ids.values())) == [ids["alice"]]
    assert await store.namespaces() == sorted(NAMESPACES[1:])


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x00b", "x" * 257, "\ud800"])
async def test_bad_namespaces_are_refused_everywhere(store: EpisodeStore, name: str) -> None:
    with pytest.raises(InvalidNamespace):
        await store.get(name, "id")
    with pytest.raises(InvalidNamespace):
        await store.candidates(name, "x", vector("x"), limit=1)
    with pytest.raises(InvalidNamespace):
        await store.delete(name, [])
    with pytest.raises(InvalidNamespace):
        await store.mentions(name, "x")
    with pytest.raises(InvalidNamespace):
        await store.stats(name)
    with pytest.raises(InvalidNamespace):
        [s async for s in store.scan(name)]
    with pytest.raises(InvalidNamespace):
        await store.set_meta(name, "k", "v")


async def test_bad_vectors_are_refused_and_nothing_is_stored(store: EpisodeStore) -> None:
    await record(store, episode("alice", "1", "kept"))
    one = episode("alice", "2", "a", "b")
    passages = passages_of(one)
    good = vectors(["a", "b"])
    for bad in (np.nan, np.inf, -np.inf):
        broken = good.copy()
        broken[1, 3] = bad
        with pytest.raises(InvalidVector, match="vector 1"):
            await store.put(one, passages, broken, EMBEDDER)
    with pytest.raises(InvalidVector, match="shape"):
        await store.put(one, passages, good[:1], EMBEDDER)
    with pytest.raises(InvalidVector, match="shape"):
        await store.put(one, passages, good[:, :4], EMBEDDER)
    with pytest.raises(InvalidVector):
        await store.candidates("alice", "x", np.full(16, np.nan, dtype=np.float32), limit=1)
    with pytest.raises(InvalidVector, match="shape"):
        await store.candidates("alice", "x", np.ones(3, dtype=np.float32), limit=1)
    assert (await store.stats("alice")).trajectories == 1
    assert await store.check() == []


async def test_passages_of_another_trajectory_or_twice_the_same_are_refused(store: EpisodeStore) -> None:
    one, other = episode("alice", "1", "a"), episode("alice", "2", "b")
    with pytest.raises(InvalidInput, match="belongs to"):
        await store.put(one, passages_of(other), vectors(["a"]), EMBEDDER)
    with pytest.raises(InvalidInput, match="second passage"):
        await store.put(one, passages_of(one) * 2, vectors(["a", "a"]), EMBEDDER)
    assert await store.namespaces() == []


async def test_another_embedder_is_refused_with_both_names_and_the_remedy(store: EpisodeStore) -> None:
    await record(store, episode("alice", "1", "a"))
    other = EMBEDDER.model_copy(update={"model": "other", "revision": "2"})
    two = episode("alice", "2", "b")
    with pytest.raises(EmbedderMismatch, match=r"\[test, revision 1.*\[other, revision 2.*rtm reindex"):
        await store.put(two, passages_of(two), vectors(["b"]), other)
    assert [s.trajectory.source_id async for s in store.scan("alice")] == ["1"]
    elsewhere = episode("bob", "2", "b")
    assert await store.put(elsewhere, passages_of(elsewhere), vectors(["b"]), other) is True
    await store.delete("alice", [episode("alice", "1", "a").id])
    assert await store.put(two, passages_of(two), vectors(["b"]), other) is True


async def test_an_episode_without_passages_is_kept(store: EpisodeStore) -> None:
    one = episode("alice", "1", "a")
    await store.put(one, [], np.zeros((0, 16), dtype=np.float32), EMBEDDER)
    assert (await store.get("alice", one.id)).trajectory == one
    assert await store.candidates("alice", "a", vector("a"), limit=5) == []


async def test_a_dropped_namespace_is_as_if_it_had_never_been(store: EpisodeStore) -> None:
    one, other = episode("alice", "1", "disk full"), episode("alice-smith", "1", "disk full")
    for each in (one, other):
        await record(store, each)
        await store.set_meta(each.namespace, "mark", "x")
    await store.drop_namespace("alice")
    await store.drop_namespace("alice")
    await store.drop_namespace("nobody")
    assert await store.namespaces() == ["alice-smith"]
    assert await store.get_meta("alice", "mark") is None
    assert await store.get_meta("alice-smith", "mark") == "x"
    assert await store.candidates("alice", "disk", vector("disk full"), limit=5) == []
    assert await store.passages("alice", one.id) == []
    assert await store.passages("alice-smith", other.id) == passages_of(other)
    assert await record(store, one)
    assert [c.passage for c in await store.candidates("alice", "disk", vector("disk full"), limit=5)] == passages_of(
        one
    )
    assert await store.check() == []


async def test_stats(store: EpisodeStore) -> None:
    await record(store, episode("alice", "1", "a", "b", tool="restart", started_at=day(2), outcome=succeeded(True)))
    await record(store, episode("alice", "2", "c", started_at=day(1), outcome=succeeded(False), source="locomo"))
    await record(store, episode("alice", "3", "d"))
    stats = await store.stats("alice")
    assert (stats.trajectories, stats.passages, stats.successes, stats.failures) == (3, 4, 1, 1)
    assert (stats.first_time, stats.last_time) == (day(1), day(2))
    assert stats.sources == {"locomo": 1, "rag-tuned-memory": 2}
    assert stats.tools == {"restart": 2}
    assert stats.recorded_at is not None
    empty = await store.stats("nobody")
    assert (empty.trajectories, empty.passages, empty.first_time, empty.tools) == (0, 0, None, {})


async def test_meta_is_kept_per_namespace(store: EpisodeStore) -> None:
    await store.set_meta("alice", "watermark", "1")
    await store.set_meta("alice", "watermark", "2")
    assert await store.get_meta("alice", "watermark") == "2"
    assert await store.get_meta("ALICE", "watermark") is None
    await store.set_meta("alice", "watermark", None)
    assert await store.get_meta("alice", "watermark") is None


async def test_many_tasks_at_once(store: EpisodeStore) -> None:
    async def work(number: int) -> None:
        one = episode("alice", str(number), f"incident INC-{number} on host{number}")
        assert await record(store, one)
        found = await store.candidates("alice", f"INC-{number}", vector("x"), limit=1)
        assert one.id in {c.passage.trajectory_id for c in found}, "a write is found as soon as it returned"

    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(work, number)
    assert (await store.stats("alice")).trajectories == 40
    assert await store.check() == []


async def test_a_cancelled_write_is_done_wholly_or_not_at_all(store: EpisodeStore) -> None:
    for number in range(30):
        one = episode("alice", str(number), *(f"step {i}" for i in range(20)))
        with anyio.move_on_after(number * 0.0005):
            await record(store, one)
        try:
            assert (await store.get("alice", one.id)).trajectory == one
            assert await store.passages("alice", one.id) == passages_of(one)
        except TrajectoryNotFound:
            assert await store.passages("alice", one.id) == []
    assert await store.check() == []


async def test_closing_twice_is_allowed(store: EpisodeStore) -> None:
    await record(store, episode("alice", "1", "a"))
    await store.close()
    await store.close()
