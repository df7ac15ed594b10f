"""Adapters for tests: registered as a distillation would, with weights of a few bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rag_tuned_memory.adapters import AdapterRegistry, Draft, Learned, Manifest, TrainStats, Watermark
from rag_tuned_memory.adapters.gate import MEASURES
from rag_tuned_memory.distil.learned import LearnedFact, write_learned
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.serving.base import CanaryPrompt, Fingerprint

METRICS = dict.fromkeys(MEASURES, 1.0)
"""Figures that the gate accepts."""


def register(
    registry: AdapterRegistry,
    namespace: str,
    folder: Path,
    learned: Sequence[str],
    *,
    sequence: int = 0,
    accepted: bool = True,
    facts: Sequence[LearnedFact] = (),
) -> Manifest:
    """Register and conclude an adapter that learned these trajectories up to ``sequence``; it does not serve yet.

    ``facts`` are what it was taught of them.
    """
    run = folder / f"run-{registry.next_name(namespace)}"
    run.mkdir(parents=True)
    (run / "adapter_model.safetensors").write_bytes(b"weights")
    (run / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    write_learned(run, list(facts))
    canary = CanaryPrompt(prompt=(("user", "Hi"),), answer="yes", adapter_logprobs=(0.0,), base_logprobs=(-10.0,))
    draft = Draft(
        base_model="scripted",
        base_revision="1",
        recipe=Recipe(),
        dataset_sha256="ab" * 32,
        learned=tuple(Learned(trajectory_id=one, content_hash="h") for one in learned),
        watermark=Watermark(sequence=sequence),
        metrics=METRICS if accepted else {**METRICS, "local_recall": 0.1},
        fingerprint=Fingerprint(canaries=(canary,), tolerance=0.05, margin=10.0),
        train=TrainStats(seconds=1.0, tokens=500, tokens_per_second=500.0),
    )
    manifest = registry.register(namespace, run, draft)
    registry.conclude(manifest.name)
    return manifest
