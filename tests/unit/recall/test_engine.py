from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag_tuned_memory.embedding import HashingEmbedder
from rag_tuned_memory.embedding.base import EmbedderIdentity, Vectors
from rag_tuned_memory.errors import EmbedderMismatch, InvalidInput, InvalidNamespace, InvalidVector
from rag_tuned_memory.recall import Recall, Recollection, assemble, estimate_tokens
from rag_tuned_memory.store import EpisodeStore, Filter, open_store
from rag_tuned_memory.trajectory import Step, StepKind, Trajectory

pytestmark = pytest.mark.anyio
START = datetime(2026, 3, 1, tzinfo=UTC)

INCIDENTS = [
    ("orion", "disk full", "delete the old logs", True),
    ("vega", "certificate expired", "renew the certificate", True),
    ("lyra", "memory leak", "restart the service", False),
    ("draco", "slow queries", "add an index", True),
]


def incident(number: int, namespace: str = "alice") -> Trajectory:
    service, cause, fix, success = INCIDENTS[number % len(INCIDENTS)]
    steps = [
        {"kind": "message", "actor": "Paula", "text": f"The {service} service does not answer."},
        {"kind": "tool_call", "actor": "agent", "tool": "read_log", "arguments": {"service": service}},
        {"kind": "tool_result", "tool": "read_log", "text": f"ERROR {cause}"},
        {"kind": "message", "actor": "agent", "text": f"I will {fix}."},
    ]
    return Trajectory.parse(
        {
            "namespace": namespace,
            "source": "test",
            "source_id": str(number),
            "goal": f"Bring {service} back",
            "outcome": {"success": success},
            "started_at": (START + timedelta(days=number)).isoformat(),
            "steps": steps,
        }
    )


class Counting(HashingEmbedder):
    """Counts the texts, and spoils the vectors of those with a forbidden word."""

    def __init__(self, forbidden: str | None = None) -> None:
        super().__init__()
        self.texts = 0
        self.forbidden = forbidden

    async def embed(self, texts: Sequence[str], *, kind: Literal["passage", "query"] = "passage", **_: Any) -> Vectors:
        self.texts += len(texts)
        vectors = await super().embed(texts, kind=kind)
        for row, text in zip(vectors, texts, strict=True):
            if self.forbidden and self.forbidden in text:
                row[0] = np.nan
        return vectors


@pytest.fixture
async def store() -> AsyncIterator[EpisodeStore]:
    opened = open_store("sqlite:///:memory:")
    yield opened
    await opened.close()


@pytest.fixture
async def engine(store: EpisodeStore) -> Recall:
    recall = Recall(store, HashingEmbedder())
    await recall.index_many([incident(number) for number in range(len(INCIDENTS))])
    return recall


async def test_what_was_recorded_is_recalled_with_all_that_is_known_of_it(engine: Recall) -> None:
    found = await engine.recall("alice", "why was the certificate of vega bad?", k=3)
    assert len(found.results) == 3
    vega = incident(1)
    assert all(result.trajectory_id == vega.id for result in found.results)
    (log,) = [result for result in found.results if result.step == 2]
    assert log.text == "ERROR certificate expired"
    assert (log.tool, log.time) == ("read_log", vega.time)
    assert log.signals.bm25 is not None
    assert log.reason.startswith("matched by words and meaning")
    (episode,) = found.episodes()
    assert (episode.goal, episode.outcome.success, episode.time) == ("Bring vega back", True, vega.time)
    assert [result.step for result in episode.results] == sorted(result.step for result in found.results)
    assert found.tokens == estimate_tokens([assemble(found)])[0]


async def test_a_trajectory_is_recalled_as_soon_as_it_is_indexed(store: EpisodeStore) -> None:
    recall = Recall(store, HashingEmbedder())
    assert (await recall.recall("alice", "lyra")).results == ()
    assert await recall.index(incident(2)) is True
    assert (await recall.recall("alice", "lyra")).results


async def test_neighbours_are_among_the_k(engine: Recall) -> None:
    found = await engine.recall("alice", "disk full", k=2)
    assert len(found.results) == 2
    best, second = found.results
    assert best.text == "ERROR disk full"
    assert second.trajectory_id == best.trajectory_id


async def test_a_passage_beside_a_candidate_is_found_though_no_search_finds_it(
    store: EpisodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag_tuned_memory.recall.engine.LEAST_CANDIDATES", 1)
    recall = Recall(store, HashingEmbedder())
    steps = [{"kind": "message", "actor": "agent", "text": text} for text in ("zebra", "yes, at nine", "filler")]
    await recall.index(Trajectory.parse({"namespace": "alice", "steps": steps, "source_id": "1"}))
    for number in range(20):
        text = f"In district {number} somebody asked for another zebra crossing beside the old town hall"
        other = [{"kind": "message", "actor": "x", "text": text}]
        await recall.index(Trajectory.parse({"namespace": "alice", "steps": other, "source_id": f"o{number}"}))
    found = await recall.recall("alice", "zebra", k=2)
    (answer,) = [result for result in found.results if result.text == "yes, at nine"]
    assert answer.signals.bm25 is None
    assert answer.signals.neighbour > answer.signals.fused
    assert "next to step 0" in answer.reason


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Filter(success=False), {2}),
        (Filter(since=START + timedelta(days=1), until=START + timedelta(days=3)), {1, 2}),
        (Filter(source="elsewhere"), set()),
        (Filter(trajectory_ids=frozenset({incident(3).id})), {3}),
    ],
)
async def test_filters_hold_for_every_result(engine: Recall, where: Filter, expected: set[int]) -> None:
    found = await engine.recall("alice", "what did the agent do about the service", k=50, where=where)
    assert {result.trajectory_id for result in found.results} == {incident(number).id for number in expected}


async def test_a_filter_by_tool_holds_for_neighbours_too(engine: Recall) -> None:
    found = await engine.recall("alice", "read the log of orion", k=50, where=Filter(tool="read_log"))
    assert len(found.results) == 2 * len(INCIDENTS)
    assert {result.tool for result in found.results} == {"read_log"}


async def test_namespaces_see_nothing_of_each_other(engine: Recall) -> None:
    await engine.index(incident(0, "bob"))
    found = await engine.recall("bob", "vega certificate", k=50)
    assert {result.trajectory_id for result in found.results} == {incident(0, "bob").id}


async def test_the_same_content_is_not_embedded_again(store: EpisodeStore) -> None:
    embedder = Counting()
    recall = Recall(store, embedder)
    assert await recall.index(incident(0)) is True
    texts = embedder.texts
    assert texts == 5
    assert await recall.index(incident(0)) is False
    outcomes = await recall.index_many([incident(0), incident(1)])
    assert [(o.changed, o.passages) for o in outcomes] == [(False, 0), (True, 5)]
    assert embedder.texts == texts + 5


async def test_an_episode_that_grows_is_not_embedded_again(store: EpisodeStore) -> None:
    embedder = Counting()
    recall = Recall(store, embedder)
    one = incident(0)
    assert await recall.index(one)
    before = await store.projection("alice", one.id)
    further = Step(kind=StepKind.MESSAGE, actor="user", text="it came back", started_at=one.time)
    again = one.steps[0]  # a text that is there already
    grown = one.model_copy(update={"steps": (*one.steps, further, again)})
    texts = embedder.texts
    assert await recall.index(grown)
    assert embedder.texts == texts + 1
    after = await store.projection("alice", one.id)
    assert after.vectors[: len(before.vectors)].tobytes() == before.vectors.tobytes()
    fresh = open_store("sqlite:///:memory:")
    await Recall(fresh, HashingEmbedder()).index(grown)
    whole = await fresh.projection("alice", one.id)
    assert after.vectors.tobytes() == whole.vectors.tobytes()
    assert after.passages == whole.passages
    await fresh.close()
    assert await recall.index(one)  # and shrinks
    assert (embedder.texts, len((await store.projection("alice", one.id)).passages)) == (texts + 1, 5)


async def test_changed_content_replaces_the_old(engine: Recall) -> None:
    changed = incident(0).model_copy(update={"goal": "Bring orion back, again"})
    assert await engine.index(changed) is True
    found = await engine.recall("alice", "orion again", k=1)
    assert "again" in found.results[0].text


async def test_a_bad_vector_costs_its_trajectory_only(store: EpisodeStore) -> None:
    recall = Recall(store, Counting(forbidden="vega"))
    seen: list[str] = []
    outcomes = await recall.index_many(
        [incident(number) for number in range(4)], progress=lambda one: seen.append(one.trajectory_id)
    )
    assert [outcome.changed for outcome in outcomes] == [True, False, True, True]
    assert isinstance(outcomes[1].error, InvalidVector)
    assert seen == [incident(number).id for number in range(4)]
    assert (await store.stats("alice")).trajectories == 3
    with pytest.raises(InvalidVector, match="NaN"):
        await recall.index(incident(1))


async def test_another_embedder_is_refused(engine: Recall, store: EpisodeStore) -> None:
    other = Recall(store, HashingEmbedder(dimension=64))
    with pytest.raises(EmbedderMismatch, match=r"dimension 256.*dimension 64.*reindex"):
        await other.recall("alice", "orion")
    with pytest.raises(EmbedderMismatch):
        await other.index(incident(7))
    with pytest.raises(EmbedderMismatch):
        await other.index(incident(0))


async def test_a_namesake_with_other_weights_is_refused(engine: Recall, store: EpisodeStore) -> None:
    embedder = HashingEmbedder()
    embedder.identity = EmbedderIdentity(model="hashing", revision="2", dimension=256)
    with pytest.raises(EmbedderMismatch):
        await Recall(store, embedder).recall("alice", "orion")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": " "}, "query"),
        ({"query": "bad \ud800"}, "UTF-8"),
        ({"query": "x", "k": 0}, "k: must be"),
        ({"query": "x", "k": True}, "k: must be"),
        ({"query": "x", "token_budget": -1}, "token_budget"),
    ],
)
async def test_bad_arguments_are_named(engine: Recall, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        await engine.recall("alice", **arguments)


async def test_a_bad_namespace_is_refused(engine: Recall) -> None:
    with pytest.raises(InvalidNamespace):
        await engine.recall("", "x")


async def test_what_was_forgotten_meanwhile_is_not_shown(
    engine: Recall, store: EpisodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = store.candidates

    async def and_forget(*arguments: Any, **more: Any) -> Any:
        found = await candidates(*arguments, **more)
        await store.delete("alice", [incident(0).id])
        return found

    monkeypatch.setattr(store, "candidates", and_forget)
    found = await engine.recall("alice", "orion disk full", k=10)
    assert found.results
    assert incident(0).id not in {result.trajectory_id for result in found.results}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    query=st.sampled_from(["orion disk", "what did Paula say", "restart", "zzz", "agent read_log certificate index"]),
    k=st.integers(1, 30),
    budget=st.one_of(st.none(), st.integers(0, 600)),
)
async def test_k_and_budget_hold_in_the_prompt(engine: Recall, query: str, k: int, budget: int | None) -> None:
    found = await engine.recall("alice", query, k=k, token_budget=budget)
    text = assemble(found)
    assert text.count("\n- ") == len(found.results) <= k
    if budget is not None:
        assert (estimate_tokens([text])[0] if text else 0) <= budget
    assert Recollection.model_validate_json(found.model_dump_json()) == found
