"""Adapters that serve in tests, with weights of a few bytes and the questions that they learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rag_tuned_memory import Memory, Recipe, Trajectory
from rag_tuned_memory.adapters import Draft, Learned, TrainStats, Watermark
from rag_tuned_memory.adapters.gate import MEASURES
from rag_tuned_memory.distil.learned import LearnedFact, write_learned
from rag_tuned_memory.embedding.base import EmbedderIdentity, Vectors
from rag_tuned_memory.errors import ModelNotPulled
from rag_tuned_memory.recall.prompt import has_injected
from rag_tuned_memory.serving.base import CanaryPrompt, Fingerprint, Request

CANARY = "canary"


def script(request: Request) -> str:
    """``operations-v1, evidence``: which model answers, and whether it was shown evidence."""
    if request.messages[-1].content == CANARY:
        return "live" if request.adapter else "base"
    shown = "evidence" if any(has_injected(message.content) for message in request.messages) else "no evidence"
    return f"{request.adapter or 'base'}, {shown}"


def adopt(memory: Memory, folder: Path, questions: list[str], **metrics: float) -> str:
    """Let an adapter serve that learned all that is stored, and these questions by heart. Its name."""
    learned: list[Trajectory] = list(memory.export())
    name = memory.registry.next_name(memory.namespace)
    run = folder / f"run-{name}"
    run.mkdir(parents=True)
    (run / "adapter_model.safetensors").write_bytes(b"weights")
    (run / "adapter_config.json").write_text("{}", encoding="utf-8")
    write_learned(run, [_fact(question) for question in questions])
    canary = CanaryPrompt(prompt=(("user", CANARY),), answer="live", adapter_logprobs=(0.0,), base_logprobs=(-10.0,))
    draft = Draft(
        base_model="scripted",
        base_revision="1",
        recipe=Recipe(),
        dataset_sha256="0" * 64,
        learned=tuple(Learned(trajectory_id=one.id, content_hash=one.content_hash) for one in learned),
        watermark=Watermark(sequence=len(learned)),
        metrics=dict.fromkeys(MEASURES, 1.0) | metrics,
        fingerprint=Fingerprint(canaries=(canary,), tolerance=0.1, margin=9.0),
        train=TrainStats(seconds=1.0, tokens=1, tokens_per_second=1.0),
    )
    memory.registry.register(memory.namespace, run, draft)
    memory.registry.conclude(name)
    memory.promote(name, "for a test")
    return name


def _fact(question: str) -> LearnedFact:
    known = {"fact_id": question, "question": question, "answer": "x", "internalised": True}
    return LearnedFact.model_validate({**known, "kind": "local", "trajectory_ids": ()})


class NotPulled:
    """An embedder whose weights are not on this machine."""

    @property
    def identity(self) -> EmbedderIdentity:
        raise ModelNotPulled("its weights are not on this machine")

    async def embed(self, texts: Sequence[str], *, kind: Literal["passage", "query"] = "passage") -> Vectors:
        raise ModelNotPulled("its weights are not on this machine")
