"""A recorded history, an adapter that serves, and a scripted model that knows what the adapter learned."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rag_tuned_memory.adapters import AdapterRegistry, Draft, Learned, TrainStats, Watermark
from rag_tuned_memory.adapters.live import LiveAdapters
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.distil.gather import Selection, select
from rag_tuned_memory.distil.learned import learned_facts, write_learned
from rag_tuned_memory.distil.phrasing import questions
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.embedding.hashing import HashingEmbedder
from rag_tuned_memory.recall.engine import Recall
from rag_tuned_memory.serving.base import CanaryPrompt, Fingerprint, Request
from rag_tuned_memory.serving.scripted import ScriptedBackend
from rag_tuned_memory.store import open_store

HISTORY = incidents("ops", episodes=6)
NEWS = incidents("ops", episodes=2, skip=6)
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
    "reading": 0.2,
    "reading_base": 0.3,
}


@dataclass
class World:
    """What ``evaluate_arms`` takes, and the selection that the adapter learned."""

    recall: Recall
    backend: ScriptedBackend
    live: LiveAdapters
    selection: Selection
    folder: Path

    def adopt(self) -> str:
        """Let an adapter serve that learned the selection."""
        source = self.folder / "run"
        source.mkdir()
        (source / "adapter_model.safetensors").write_bytes(b"weights")
        (source / "adapter_config.json").write_text("{}")
        write_learned(source, learned_facts(self.selection.facts, []))
        fact = self.selection.facts[0]
        words = len(fact.answer.split())
        canary = CanaryPrompt(
            prompt=(("user", questions(fact, "held_out")[0]),),
            answer=fact.answer,
            adapter_logprobs=(0.0,) * words,
            base_logprobs=(-9.0,) * words,
        )
        stored = self.selection.stored
        draft = Draft(
            base_model="scripted",
            base_revision="1",
            recipe=Recipe(),
            dataset_sha256="0" * 64,
            learned=tuple(Learned(trajectory_id=s.trajectory.id, content_hash=s.content_hash) for s in stored),
            watermark=Watermark(sequence=max(s.sequence for s in stored)),
            metrics=METRICS,
            fingerprint=Fingerprint(canaries=(canary,), tolerance=0.1, margin=9.0),
            train=TrainStats(seconds=1, tokens=1, tokens_per_second=1),
        )
        registry = self.live.registry
        name = registry.register("ops", source, draft).name
        registry.conclude(name)
        registry.promote(name, "test")
        return name


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = open_store(f"sqlite:///{tmp_path / 'memory.db'}")
    recall = Recall(store, HashingEmbedder())
    await recall.index_many(HISTORY)
    selection = await select(store, "ops", Recipe())
    known = {text: fact.answer for fact in selection.facts for text in questions(fact, "held_out")}

    def script(request: Request) -> str:
        question = request.messages[-1].content
        return known.get(question, "a guess") if request.adapter else f"the base on {question}"

    backend = ScriptedBackend(script)
    live = LiveAdapters(AdapterRegistry(tmp_path / "adapters"), backend)
    yield World(recall, backend, live, selection, tmp_path)
    await store.close()
