"""Recall on recorded conversations with the real embedder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rag_tuned_memory.embedding import SentenceEmbedder
from rag_tuned_memory.evaluation.recall import evaluate_recall
from rag_tuned_memory.models import locate
from rag_tuned_memory.store import open_store

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def first_sample(source: Path, target: Path) -> Path:
    target.write_text(json.dumps(json.loads(source.read_text())[:1]))
    return target


async def test_seven_tenths_of_the_evidence_are_among_the_first_ten(
    recorded_data: Path, models_cache: Path, tmp_path: Path
) -> None:
    part = first_sample(recorded_data / "locomo-dev.json", tmp_path / "locomo.json")
    found = await evaluate_recall(
        part,
        embedder=SentenceEmbedder(locate("all-MiniLM-L6-v2", models_cache)),
        store_factory=lambda: open_store(f"sqlite:///{tmp_path / 'memory.db'}"),
    )
    assert found["questions"] > 100
    assert all(len(row["recalled"]) == 10 for row in found["rows"])
    assert found["recall_at_k"] >= 0.70
