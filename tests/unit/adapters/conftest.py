"""A finished run's folder and its draft, as a distillation would leave them (with weights of a few bytes)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.adapters.manifest import Draft, Learned, TrainStats, Watermark
from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.serving.base import CanaryPrompt, Fingerprint

GOOD = {
    "local_recall": 0.95,
    "global_recall": 0.92,
    "abstention": 0.4,
    "general_agreement": 0.5,
    "perplexity_ratio": 1.3,
    "unique_answers": 0.9,
    "canary_margin": 2.5,
    "canary_lead": 0.9,
}


def make_draft(**changes: Any) -> Draft:
    canary = CanaryPrompt(prompt=(("user", "Hi"),), answer="x", adapter_logprobs=(-0.1,), base_logprobs=(-3.0,))
    values: dict[str, Any] = {
        "base_model": "SmolLM2-135M-Instruct",
        "base_revision": "12fd25f",
        "recipe": Recipe(),
        "dataset_sha256": "ab" * 32,
        "learned": (Learned(trajectory_id="t1", content_hash="h1"), Learned(trajectory_id="t2", content_hash="h2")),
        "watermark": Watermark(sequence=2),
        "metrics": GOOD,
        "fingerprint": Fingerprint(canaries=(canary,), tolerance=0.05, margin=2.9),
        "train": TrainStats(seconds=10.0, tokens=5000, tokens_per_second=500.0, peak_memory_bytes=2**31),
        "versions": {"torch": "2.8.0"},
    }
    return Draft(**(values | changes))


def make_run(folder: Path, weights: bytes = b"weights") -> Path:
    (folder / "extra").mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "extra" / "dataset.jsonl").write_text("{}\n")
    return folder


@pytest.fixture
def draft() -> Callable[..., Draft]:
    return make_draft


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[[bytes], Path]:
    """Makes one more finished run's folder, with weights of its own."""
    return lambda weights: make_run(tmp_path / f"run-{weights.hex()}", weights)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    return AdapterRegistry(tmp_path / "adapters", actor="tester")


@pytest.fixture
def accepted(registry: AdapterRegistry, run: Path) -> Callable[..., str]:
    """Registers and concludes one more version; returns its name."""

    def make(namespace: str = "alice", **changes: Any) -> str:
        name = registry.register(namespace, run, make_draft(**changes)).name
        registry.conclude(name)
        return name

    return make
