"""Probing, with a scripted model that knows everything that it learnt, and one answer to the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from histories import demo

from rag_tuned_memory.distil.compose import Material
from rag_tuned_memory.distil.evaluate import evaluate, probes
from rag_tuned_memory.distil.gather import facts_of
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.distil.replay import Replay
from rag_tuned_memory.serving.base import Fingerprint
from rag_tuned_memory.serving.scripted import ScriptedBackend

pytestmark = pytest.mark.anyio
SELECTION = facts_of(demo(), Recipe(), "ops")
MATERIAL = Material(SELECTION.episodes, SELECTION.facts, contexts={}, replays=())
RIGHT = {probe.question: probe.gold for probe in probes(SELECTION.facts)}
HELD_OUT = [Replay(question="Name a colour.", answer="Blue is one.")]
FINGERPRINT = Fingerprint(canaries=(), tolerance=0.1, margin=2.0)


def knowing(otherwise: str) -> ScriptedBackend:
    """An adapter that knows all facts and says ``otherwise`` to every other question."""
    return ScriptedBackend(lambda request: RIGHT.get(request.messages[-1].content, otherwise))


async def measured(backend: ScriptedBackend, folder: Path) -> dict[str, float]:
    await backend.load_adapter("ops-v1", folder)
    return dict((await evaluate(backend, "ops-v1", MATERIAL, HELD_OUT, FINGERPRINT, seed=1)).metrics)


@pytest.mark.parametrize(("otherwise", "abstention"), [("I have no memory of it.", 1.0), ("a full disk", 0.0)])
async def test_to_abstain_is_to_decline(tmp_path: Path, otherwise: str, abstention: float) -> None:
    metrics = await measured(knowing(otherwise), tmp_path)
    assert metrics["local_recall"] == metrics["global_recall"] == 1.0
    assert metrics["abstention"] == abstention


async def test_forgetting_is_measured_against_the_bases_own_answers(tmp_path: Path) -> None:
    metrics = await measured(knowing("Blue is one."), tmp_path)
    assert metrics["general_agreement"] == 1.0
    metrics = await measured(knowing("Red"), tmp_path)
    assert metrics["general_agreement"] == 0.0
