"""The whole loop on a tiny random model: what it learns is nothing, what happens around it is real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from rag_tuned_memory import AsyncMemory
from rag_tuned_memory.adapters import State
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.distil.dataset import read_dataset
from rag_tuned_memory.distil.learned import read_learned
from rag_tuned_memory.distil.recipe import Gate, LoraRecipe, Mixture, Recipe
from rag_tuned_memory.errors import AdapterNotServable, TrainingStopped
from rag_tuned_memory.learning.events import Event
from rag_tuned_memory.routing import Route
from rag_tuned_memory.settings import Settings

pytestmark = pytest.mark.anyio
HISTORY = incidents("ops", episodes=4)
QUICK = Recipe(
    lora=LoraRecipe(rank=4, alpha=8),
    mixture=Mixture(exposures=1, matched=0.1, mismatched=0.1, reading=0.1, replay=0),
    learning_rate=1e-2,
    checkpoint_every=5,
    context_tokens=400,
    max_length=1200,
)
LENIENT = QUICK.model_copy(
    update={
        "gate": Gate(
            local_recall=0,
            global_recall=0,
            abstention=0,
            general_agreement=0,
            perplexity_ratio=1e9,
            unique_answers=0,
            canary_margin=1e-6,
            canary_lead=0,
        )
    }
)


@pytest.fixture
async def memory(tmp_path: Path, tiny_model: Path) -> AsyncIterator[AsyncMemory]:
    settings = Settings(home=tmp_path / "home", cache=tmp_path / "cache", model=str(tiny_model), embedder="hashing")
    async with AsyncMemory("ops", settings=settings) as memory:
        await memory.record_many(HISTORY)
        yield memory


async def test_the_gate_rejects_an_adapter_that_learned_nothing(memory: AsyncMemory) -> None:
    report = await memory.distil(QUICK)
    name = report.manifest.name
    assert not report.decision.accepted
    assert not report.promoted
    assert memory.registry.state(name) is State.REJECTED
    assert memory.registry.serving("ops") is None
    failed = {verdict.metric for verdict in report.decision.failures}
    assert {"local_recall", "global_recall"} <= failed
    assert "rejected" in report.report.read_text().lower()
    with pytest.raises(AdapterNotServable):
        memory.registry.promote(name, "I insist")
    answer = await memory.answer(f"What was the cause of {HISTORY[0].source_id}?", max_new_tokens=4)
    assert answer.route is Route.RETRIEVAL
    assert answer.adapter is None


async def test_an_accepted_adapter_serves_until_something_it_learned_is_forgotten(memory: AsyncMemory) -> None:
    events: list[Event] = []
    report = await memory.distil(LENIENT, on_event=events.append)
    assert report.promoted
    name = report.manifest.name
    stages = list(dict.fromkeys(event.stage for event in events))
    order = ["select", "contexts", "replay", "compose", "train", "fingerprint", "evaluate", "gate"]
    assert [stage for stage in stages if stage in order] == [stage for stage in order if stage in stages]
    assert {"select", "train", "evaluate", "gate"} <= set(stages)
    query = f"What was the cause of {HISTORY[0].source_id}?"
    assert (await memory.answer(query, route=Route.TUNED, max_new_tokens=4)).adapter == name

    receipt = await memory.forget([HISTORY[0].id])
    assert name in str(receipt)
    assert memory.registry.state(name) is State.TAINTED
    after = await memory.answer(query, max_new_tokens=4)
    assert after.adapter is None
    with pytest.raises(AdapterNotServable):
        await memory.answer(query, route=Route.TUNED)


async def test_lineage_resolves_both_ways(memory: AsyncMemory) -> None:
    report = await memory.distil(LENIENT)
    manifest = report.manifest
    assert {one.trajectory_id for one in manifest.learned} == {t.id for t in HISTORY}
    assert [m.name for m in memory.registry.learned_from(HISTORY[1].id, "ops")] == [manifest.name]
    folder = memory.registry.path(manifest.name)
    examples = read_dataset(folder / "dataset.jsonl")
    facts = {fact.fact_id: fact for fact in read_learned(folder)}
    assert examples
    assert {example.fact_id for example in examples if example.fact_id} <= set(facts)
    assert {identifier for fact in facts.values() for identifier in fact.trajectory_ids} <= {t.id for t in HISTORY}


async def test_a_stopped_run_goes_on_from_its_checkpoint(memory: AsyncMemory) -> None:
    seen: list[int] = []

    def watch(event: Event) -> None:
        if event.training:
            seen.append(event.training.step)

    with pytest.raises(TrainingStopped, match="Distil again"):
        await memory.distil(LENIENT, on_event=watch, should_stop=lambda: len(seen) >= 3)
    stopped_at = seen[-1]
    seen.clear()
    report = await memory.distil(LENIENT, on_event=watch)
    assert seen[0] == stopped_at + 1
    assert report.promoted


async def test_recording_and_answering_go_on_while_it_trains(memory: AsyncMemory) -> None:
    started = anyio.Event()
    answered_at: list[int] = []
    steps: list[int] = []
    token = anyio.lowlevel.current_token()

    def watch(event: Event) -> None:
        if event.training:
            steps.append(event.training.step)
            anyio.from_thread.run_sync(started.set, token=token)

    async def use() -> None:
        await started.wait()
        (new,) = incidents("ops", skip=4, episodes=1)
        await memory.record(new)
        found = await memory.recall(str(new.source_id), k=1)
        assert found.results[0].trajectory_id == new.id
        answered_at.append(len(steps))

    async with anyio.create_task_group() as group:
        group.start_soon(use)
        await memory.distil(LENIENT, on_event=watch)
    assert answered_at[0] < len(steps)
