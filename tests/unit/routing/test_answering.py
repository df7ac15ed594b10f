"""Answering end to end over a real store and registry, with a scripted model."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.adapters import AdapterRegistry, Draft, Learned, TrainStats, Watermark
from rag_tuned_memory.adapters.live import LiveAdapters
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.distil.facts import Fact
from rag_tuned_memory.distil.learned import learned_facts, write_learned
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.embedding.hashing import HashingEmbedder
from rag_tuned_memory.errors import AdapterNotServable
from rag_tuned_memory.recall.engine import Recall
from rag_tuned_memory.recall.prompt import has_injected
from rag_tuned_memory.routing import Answerer, Route
from rag_tuned_memory.serving.base import CanaryPrompt, Fingerprint, Generation, Request, Token
from rag_tuned_memory.serving.scripted import ScriptedBackend
from rag_tuned_memory.store import open_store
from rag_tuned_memory.trajectory import Trajectory

pytestmark = pytest.mark.anyio
HISTORY = incidents("ops", episodes=6)
METRICS = {
    "local_recall": 0.95,
    "global_recall": 0.95,
    "abstention": 0.5,
    "general_agreement": 0.6,
    "perplexity_ratio": 1.2,
    "unique_answers": 0.9,
    "canary_margin": 2.0,
    "canary_lead": 0.9,
    "beside_context": 0.9,
    "reading": 0.7,
    "reading_base": 0.3,
}


def script(request: Request) -> str:
    where = "evidence" if has_injected(request.messages[0].content) else "no evidence"
    return f"{request.adapter or 'base'}, {where}"


class World:
    """A recorded history; ``adopt`` lets an adapter serve that learned it."""

    def __init__(self, recall: Recall, registry: AdapterRegistry, folder: Path) -> None:
        self.recall, self.registry, self.folder = recall, registry, folder
        self.backend = ScriptedBackend(script)
        self.answerer = Answerer(recall, self.backend, LiveAdapters(registry, self.backend))

    def adopt(self, learned: list[Trajectory], **metrics: float) -> str:
        name = str(learned[0].source_id)
        fact = Fact(kind="local", topic="cause", slots={"key": "cause", "label": name}, answer="x", trajectory_ids=())
        source = self.folder / "run"
        source.mkdir()
        (source / "adapter_model.safetensors").write_bytes(b"weights")
        (source / "adapter_config.json").write_text("{}")
        write_learned(source, learned_facts([fact], []))
        canary = CanaryPrompt(
            prompt=(("user", "Hi"),),
            answer="ops-v1, no evidence",
            adapter_logprobs=(0.0,) * 3,
            base_logprobs=(-9.0,) * 3,
        )
        draft = Draft(
            base_model="scripted",
            base_revision="1",
            recipe=Recipe(),
            dataset_sha256="0" * 64,
            learned=tuple(Learned(trajectory_id=t.id, content_hash=t.content_hash) for t in learned),
            watermark=Watermark(sequence=len(learned)),
            metrics=METRICS | metrics,
            fingerprint=Fingerprint(canaries=(canary,), tolerance=0.1, margin=9.0),
            train=TrainStats(seconds=1, tokens=1, tokens_per_second=1),
        )
        name = self.registry.register("ops", source, draft).name
        self.registry.conclude(name)
        self.registry.promote(name, "test")
        return name


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = open_store(f"sqlite:///{tmp_path / 'memory.db'}")
    recall = Recall(store, HashingEmbedder())
    await recall.index_many(HISTORY)
    yield World(recall, AdapterRegistry(tmp_path / "adapters"), tmp_path)
    await store.close()


async def ask(world: World, query: str, **options: Any) -> tuple[Route, str]:
    answer = await world.answerer.answer("ops", query, **options)
    return answer.route, answer.text


async def test_without_an_adapter_the_base_reads_evidence(world: World) -> None:
    answer = await world.answerer.answer("ops", f"What was the cause of {HISTORY[2].source_id}?")
    assert (answer.route, answer.text, answer.adapter) == (Route.RETRIEVAL, "base, evidence", None)
    assert answer.evidence is not None
    assert answer.evidence.results[0].trajectory_id == HISTORY[2].id


async def test_deciding_names_the_adapter_and_generates_nothing(world: World) -> None:
    name = world.adopt(HISTORY)
    routing = await world.answerer.decide("ops", f"What was the cause of {HISTORY[0].source_id}?", k=3)
    assert (routing.decision.route, routing.decision.features.adapter) == (Route.TUNED, name)
    assert 0 < len(routing.recollection.results) <= 3
    assert await world.backend.adapters() == [name]
    assert world.backend.requests == []


async def test_a_learned_question_goes_to_the_adapter(world: World) -> None:
    name = world.adopt(HISTORY)
    query = f"What was the cause of {HISTORY[0].source_id}?"
    assert await ask(world, query) == (Route.TUNED, f"{name}, no evidence")


async def test_a_fresh_episode_is_never_answered_from_weights(world: World) -> None:
    name = world.adopt(HISTORY[:3])
    query = f"What was the cause of {HISTORY[5].source_id}?"
    assert await ask(world, query) == (Route.BOTH, f"{name}, evidence")


async def test_who_reads_fresh_evidence_is_measured(world: World) -> None:
    world.adopt(HISTORY[:3], reading=0.1)
    query = f"What was the cause of {HISTORY[5].source_id}?"
    assert await ask(world, query) == (Route.RETRIEVAL, "base, evidence")


async def test_an_unknown_entity_is_declined_without_asking_the_model(world: World) -> None:
    world.adopt(HISTORY)
    await world.answerer.answer("ops", "What was the cause of INC-0000?")
    asked = len(world.backend.requests)
    answer = await world.answerer.answer("ops", "What was the cause of INC-0000?")
    assert answer.abstained
    assert "INC-0000" in answer.text
    assert len(world.backend.requests) == asked


async def test_a_general_question_gets_the_bare_base(world: World) -> None:
    world.adopt(HISTORY)
    assert await ask(world, "zzzz qqqq?") == (Route.NONE, "base, no evidence")
    assert [message.role for message in world.backend.requests[-1].messages] == ["user"]


async def test_a_tainted_adapter_stops_at_once(world: World) -> None:
    name = world.adopt(HISTORY)
    query = f"What was the cause of {HISTORY[0].source_id}?"
    assert (await ask(world, query))[0] is Route.TUNED
    world.registry.taint(name, "test")
    await world.answerer._live.refresh("ops")
    assert await ask(world, query) == (Route.RETRIEVAL, "base, evidence")
    assert await world.backend.adapters() == []


@pytest.mark.parametrize(
    ("alone", "beside", "route", "calls"),
    [(0.9, 0.1, Route.TUNED, 1), (0.3, 0.8, Route.BOTH, 2), (0.3, 0.2, Route.TUNED, 2)],
)
async def test_an_unsure_answer_is_tried_again_and_the_surer_one_stands(
    world: World, monkeypatch: pytest.MonkeyPatch, alone: float, beside: float, route: Route, calls: int
) -> None:
    world.adopt(HISTORY)
    generate = world.backend.generate

    async def unsure(requests: Sequence[Request]) -> list[Generation]:
        return [
            replace(done, tokens=(Token(0, "", math.log(alone if "no evidence" in done.text else beside), 0.5),))
            for done in await generate(requests)
        ]

    monkeypatch.setattr(world.backend, "generate", unsure)
    asked = len(world.backend.requests)
    answer = await world.answerer.answer("ops", f"What was the cause of {HISTORY[0].source_id}?")
    assert answer.route is route
    assert answer.text.endswith("no evidence") is (route is Route.TUNED)
    assert answer.features.confidence == pytest.approx(alone)
    assert answer.features.entropy == 0.5
    assert len(world.backend.requests) - asked == calls


async def test_a_given_route_is_taken(world: World) -> None:
    name = world.adopt(HISTORY)
    query = f"What was the cause of {HISTORY[0].source_id}?"
    texts = [(await ask(world, query, route=route))[1] for route in Route]
    assert texts == [f"{name}, no evidence", "base, evidence", f"{name}, evidence", "base, no evidence"]


async def test_a_given_route_without_its_adapter_is_an_error(world: World) -> None:
    with pytest.raises(AdapterNotServable, match="no adapter serves"):
        await world.answerer.answer("ops", "Why?", route=Route.TUNED)


async def test_streams_end_with_the_whole_answer(world: World) -> None:
    chunks = [chunk async for chunk in world.answerer.stream("ops", f"What was {HISTORY[0].source_id} about?")]
    assert chunks[-1].answer is not None
    assert "".join(chunk.text for chunk in chunks).strip() == chunks[-1].answer.text


async def test_streams_begin_with_what_is_known_before_anything_is_said(world: World) -> None:
    asked = [f"What was {HISTORY[0].source_id} about?", "Did the agent see INC-9999?"]
    for query, declined in zip(asked, (False, True), strict=True):
        chunks = [chunk async for chunk in world.answerer.stream("ops", query)]
        begun, answer = chunks[0].begun, chunks[-1].answer
        assert begun
        assert answer
        assert (begun.text, begun.abstained) == ("", declined)
        said = ("text", "prompt_tokens", "answer_tokens", "seconds")
        assert begun.model_copy(update={name: getattr(answer, name) for name in said}) == answer
        assert [chunk.begun for chunk in chunks[1:]] == [None] * (len(chunks) - 1)


async def test_another_namespace_sees_nothing(world: World) -> None:
    world.adopt(HISTORY)
    answer = await world.answerer.answer("ops-2", f"What was the cause of {HISTORY[0].source_id}?")
    assert answer.adapter is None
    assert not (answer.evidence and answer.evidence.results)
