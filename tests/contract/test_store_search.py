"""What is found, in which order, and with which scores."""

from __future__ import annotations

import numpy as np
import pytest
from store_helpers import EMBEDDER, day, episode, passages_of, record, succeeded, vector, vectors

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.store import Candidate, EpisodeStore, Filter

pytestmark = pytest.mark.anyio


async def texts_found(store: EpisodeStore, query: str, limit: int = 10) -> list[str]:
    """The texts that text search finds, best first."""
    found = await store.candidates("alice", query, vector("nothing like it"), limit=limit)
    by_text = [c for c in found if c.bm25 is not None]
    return [c.passage.text for c in sorted(by_text, key=lambda c: -(c.bm25 or 0))]


async def fill(store: EpisodeStore, *texts: str, namespace: str = "alice") -> None:
    for number, text in enumerate(texts):
        await record(store, episode(namespace, str(number), text))


async def test_every_candidate_has_its_exact_cosine(store: EpisodeStore) -> None:
    texts = [f"text {i}" for i in range(60)]
    await fill(store, *texts)
    query = vector("a query")
    found = await store.candidates("alice", "text 7", query, limit=10)
    for candidate in found:
        assert candidate.dense == pytest.approx(float(vector(candidate.passage.text) @ query), abs=1e-5)
    nearest = sorted(texts, key=lambda text: -float(vector(text) @ query))[:10]
    assert [c.passage.text for c in found if c.passage.text in nearest] == nearest
    assert [c.dense for c in found] == sorted((c.dense for c in found), reverse=True)


async def test_vectors_need_not_have_length_one(store: EpisodeStore) -> None:
    one = episode("alice", "1", "a", "b")
    await store.put(one, passages_of(one), np.stack([vector("a") * 1000, np.zeros(16, np.float32)]), EMBEDDER)
    found = await store.candidates("alice", "", vector("a") * 0.001, limit=5)
    assert [(c.passage.text, c.bm25) for c in found] == [("a", None), ("b", None)]
    assert found[0].dense == pytest.approx(1, abs=1e-5)
    assert found[1].dense == 0


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("what happened in INC-1042?", "INC-1042 was a full disk"),
        ("inc-1042", "INC-1042 was a full disk"),
        ("flight HAT136", "booked (HAT136) to Boston"),
        ("user mia_li_3668", "profile of mia_li_3668 loaded"),
        ("/etc/nginx.conf", "edited /etc/nginx.conf by hand"),
        ("nginx.conf", "edited /etc/nginx.conf by hand"),
        ("who restarts things", "the agent restarted orion"),
        ("Zürich", "the office in ZÜRICH is closed"),
    ],
)
async def test_codes_ids_paths_and_stems_are_found_first(store: EpisodeStore, query: str, text: str) -> None:
    others = ["INC-10421 was a network fault", "booked HAT137", "profile of mia_kim_1", "edited /etc/hosts", "1042 inc"]
    await fill(store, *others, text, "nothing of interest", "some other words")
    assert (await texts_found(store, query))[0] == text


@pytest.mark.parametrize(
    "query",
    [
        *('"', '"" OR', "a AND (b", "NEAR(x y)", "indexed: x", "x*", "^x", "-x", "\x00", "a\x00b", "", " ", "🦊"),
        "'; DROP TABLE passages",
        "*" * 50,
        "word " * 5000,
    ],
)
async def test_text_never_becomes_syntax(store: EpisodeStore, query: str) -> None:
    await fill(store, "a word", "b word", "x y z")
    assert isinstance(await store.candidates("alice", query, vector("q"), limit=2), list)
    assert await store.mentions("alice", query) in (0, 1, 2)


async def test_a_query_that_is_no_utf8_is_refused(store: EpisodeStore) -> None:
    await fill(store, "a word")
    with pytest.raises(InvalidInput, match="UTF-8"):
        await store.candidates("alice", "a \ud800", vector("q"), limit=2)
    with pytest.raises(InvalidInput, match="UTF-8"):
        await store.mentions("alice", "a \ud800")


async def test_rarer_words_weigh_more_and_common_ones_are_found_alone(store: EpisodeStore) -> None:
    await fill(store, "the disk of orion", "the disk of vega", "the fan of vega", "the rack of vega")
    assert (await texts_found(store, "the disk of orion"))[:2] == ["the disk of orion", "the disk of vega"]
    assert set(await texts_found(store, "the")) == {
        "the disk of orion",
        "the disk of vega",
        "the fan of vega",
        "the rack of vega",
    }


async def test_another_tenants_records_do_not_change_a_ranking(store: EpisodeStore) -> None:
    await fill(store, "orion disk disk failed", "vega fan failed slowly", "orion fan replaced", "lyra", "lyra again")

    async def ranking() -> list[Candidate]:
        return await store.candidates("alice", "orion fan failed", vector("q"), limit=4)

    before = await ranking()
    assert any(c.bm25 for c in before)
    await fill(store, *(f"orion orion fan {i}" for i in range(50)), namespace="bob")
    assert await ranking() == before


async def test_limits_hold_for_each_signal(store: EpisodeStore) -> None:
    await fill(store, *(f"orion {i}" for i in range(30)), *(f"vega {i}" for i in range(40)))
    found = await store.candidates("alice", "orion", vector("vega 3"), limit=5)
    assert sum(c.bm25 is not None for c in found) >= 5
    assert 5 <= len(found) <= 10
    assert await store.candidates("alice", "orion", vector("q"), limit=0) == []
    assert len(await store.candidates("alice", "orion", vector("q"), limit=10_000)) == 70
    with pytest.raises(InvalidInput, match="limit"):
        await store.candidates("alice", "orion", vector("q"), limit=-1)


async def test_filters_apply_before_the_limit(store: EpisodeStore) -> None:
    for i in range(40):
        rare = i % 8 == 0
        await record(
            store,
            episode(
                "alice",
                str(i),
                f"orion failed {i}",
                tool="restart" if rare else "page",
                started_at=day(i),
                outcome=succeeded(rare),
                source="rare" if rare else "usual",
            ),
        )
    ids = frozenset(episode("alice", str(i), "x", source="rare").id for i in range(0, 40, 8))
    query = vector("orion failed 1")
    for where in (
        Filter(tool="restart"),
        Filter(success=True),
        Filter(source="rare"),
        Filter(trajectory_ids=ids),
        Filter(without=frozenset(episode("alice", str(i), "x", source="usual").id for i in range(40) if i % 8)),
        Filter(tool="restart", success=True, source="rare", since=day(0), until=day(40)),
    ):
        found = await store.candidates("alice", "orion failed", query, limit=5, where=where)
        assert {c.passage.trajectory_id for c in found} == ids
        assert all(c.bm25 is not None for c in found)
    between = await store.candidates("alice", "orion", query, limit=5, where=Filter(since=day(3), until=day(6)))
    assert {c.passage.text for c in between} == {"orion failed 3", "orion failed 4", "orion failed 5"}
    none = await store.candidates("alice", "orion", query, limit=5, where=Filter(tool="restart", success=False))
    assert none == []
    assert await store.candidates("alice", "orion", query, limit=5, where=Filter(trajectory_ids=frozenset())) == []
    everything = await store.candidates("alice", "orion", query, limit=100, where=Filter(without=frozenset()))
    assert len(everything) == 40


async def test_undated_passages_fail_a_condition_on_time(store: EpisodeStore) -> None:
    await fill(store, "undated orion")
    assert await store.candidates("alice", "orion", vector("q"), limit=5, where=Filter(since=day(-9999))) == []


async def test_equal_scores_are_ordered_by_key_whatever_the_order_of_writing(store: EpisodeStore) -> None:
    numbers = list(range(20))
    for namespace, order in (("alice", numbers), ("bob", numbers[::-1])):
        for i in order:
            one = episode(namespace, str(i), "orion failed", "other words")
            await store.put(one, passages_of(one), vectors(["orion failed", "other words"]), EMBEDDER)
    for namespace in ("alice", "bob"):
        found = await store.candidates(namespace, "orion", vector("orion failed"), limit=5)
        keys = sorted((episode(namespace, str(i), "x").id, 0, 0) for i in numbers)[:5]
        assert [c.passage.key for c in found] == keys
        assert len({(c.dense, c.bm25) for c in found}) == 1


async def test_mentions_counts_trajectories_with_the_whole_phrase(store: EpisodeStore) -> None:
    await record(store, episode("alice", "1", "INC-1042 again", "see INC-1042", "and inc-1042."))
    await fill(store, "x")  # "0"
    await record(store, episode("alice", "2", "INC-10421, XINC-1042, INC_1042, 1042-INC and INC 1042"))
    await record(store, episode("alice", "3", "(inc-1042)", "disk\n full"))
    await record(store, episode("alice", "4", "C++ and disks, fully", "***"))
    mentions = store.mentions
    assert await mentions("alice", "INC-1042") == 2
    assert await mentions("alice", "disk full") == 1
    assert await mentions("alice", "disk") == 1
    assert await mentions("alice", "C++") == 1
    assert await mentions("alice", "***") == 1
    assert await mentions("alice", "INC-104") == 0
    assert await mentions("alice", "") == 0
    assert await mentions("bob", "INC-1042") == 0
