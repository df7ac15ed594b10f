"""Probing, with a scripted model that knows everything, or nothing, or guesses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from histories import demo

from rag_tuned_memory.distil.compose import Material
from rag_tuned_memory.distil.evaluate import evaluate, probes
from rag_tuned_memory.distil.gather import facts_of
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.distil.replay import Replay
from rag_tuned_memory.serving.base import Fingerprint, Generation, Request, Token
from rag_tuned_memory.serving.scripted import ScriptedBackend

pytestmark = pytest.mark.anyio
SELECTION = facts_of(demo(), Recipe(), "ops")
MATERIAL = Material(SELECTION.episodes, SELECTION.facts, contexts={}, replays=())
RIGHT = {probe.question: probe.gold for probe in probes(SELECTION.facts)}
HELD_OUT = [Replay(question="Name a colour.", answer="Blue is one.")]
FINGERPRINT = Fingerprint(canaries=(), tolerance=0.1, margin=2.0)


class Adapter(ScriptedBackend):
    """Knows all facts; says ``otherwise`` to every other question, with that probability of its least certain token."""

    def __init__(self, otherwise: str, probability: float) -> None:
        super().__init__(lambda request: RIGHT.get(request.messages[-1].content, otherwise))
        self.probability = probability

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        guess = (Token(0, "", math.log(self.probability), 1.0),)
        done = await super().generate(requests)
        known = [request.messages[-1].content in RIGHT for request in requests]
        return [one if sure else replace(one, tokens=guess) for one, sure in zip(done, known, strict=True)]


async def measured(backend: Adapter, folder: Path) -> dict[str, float]:
    await backend.load_adapter("ops-v1", folder)
    return dict((await evaluate(backend, "ops-v1", MATERIAL, HELD_OUT, FINGERPRINT, seed=1)).metrics)


@pytest.mark.parametrize(
    ("otherwise", "probability", "abstention", "declined"),
    [
        ("I have no memory of it.", 0.9, 1.0, 1.0),
        ("a full disk", 0.2, 1.0, 0.0),
        ("a full disk", 0.9, 0.0, 0.0),
    ],
)
async def test_to_abstain_is_to_decline_or_to_be_unsure(
    tmp_path: Path, otherwise: str, probability: float, abstention: float, declined: float
) -> None:
    metrics = await measured(Adapter(otherwise, probability), tmp_path)
    assert metrics["local_recall"] == metrics["global_recall"] == 1.0
    assert (metrics["abstention"], metrics["declined"]) == (abstention, declined)


async def test_forgetting_is_measured_against_the_bases_own_answers(tmp_path: Path) -> None:
    metrics = await measured(Adapter("Blue is one.", 0.9), tmp_path)
    assert metrics["general_agreement"] == 1.0
    metrics = await measured(Adapter("Red", 0.9), tmp_path)
    assert metrics["general_agreement"] == 0.0
