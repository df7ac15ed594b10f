"""A real distillation of SmolLM2-135M, smaller than ``make demo``'s: it learns, it is gated, it is routed to."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import pytest
from rich.console import Console

from rag_tuned_memory import AsyncMemory
from rag_tuned_memory.adapters import AdapterRegistry, State
from rag_tuned_memory.demo.run import run_demo
from rag_tuned_memory.demo.show import Screen
from rag_tuned_memory.demo.steps import NAMESPACE, DemoPlan
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.evaluation.arms import ArmsLimits
from rag_tuned_memory.evaluation.results import ArmsResult
from rag_tuned_memory.learning.events import DistilReport
from rag_tuned_memory.settings import Settings

pytestmark = pytest.mark.slow

SMALL: dict[Any, int] = {"local": 15, "global": 15, "unknown": 8, "general": 8, "fresh": 5}
WRECKING = Recipe(learning_rate=0.5, max_tokens=8_000)


@pytest.fixture(scope="module")
def plan(models_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> DemoPlan:
    return DemoPlan(
        folder=tmp_path_factory.mktemp("end") / "demo",
        episodes=6,
        fresh=1,
        limits=SMALL,
        arms=ArmsLimits(max_new_tokens=24, sample={"full_context": 2}),
    )


@pytest.fixture(scope="module")
def settings(plan: DemoPlan, models_cache: Path) -> Settings:
    return Settings(home=plan.folder, cache=models_cache)


@pytest.fixture(scope="module")
def summary(plan: DemoPlan, models_cache: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTM_CACHE", str(models_cache))
        for name in ("RTM_MODEL", "RTM_EMBEDDER", "RTM_STORE"):
            patch.delenv(name, raising=False)
        return run_demo(plan, Screen(Console(file=StringIO())))


def test_held_out_words_are_answered_by_the_adapter_and_not_by_retrieval(summary: dict[str, Any]) -> None:
    arms = summary["arms"]
    assert summary["gate"]["accepted"], summary["gate"]["summary"]
    assert arms["tuned"]["local"] >= 0.9
    assert arms["tuned"]["global"] >= 0.9
    assert arms["retrieval"]["global"] <= arms["tuned"]["global"] - 0.3
    assert arms["none"]["local"] == 0
    assert arms["none"]["global"] <= 0.3  # a small count can be guessed


def test_routing_keeps_the_best_of_all_arms(summary: dict[str, Any]) -> None:
    arms = summary["arms"]
    for kind in ("local", "global", "general"):
        assert arms["routed"][kind] >= max(arms[arm][kind] for arm in arms) - 0.07, (kind, arms)
    assert arms["routed"]["unknown"] >= 0.9
    assert arms["routed"]["general"] == 1.0
    assert summary["tokens"]["routed"] < summary["tokens"]["retrieval"]


def test_general_questions_leave_the_adapter_off(summary: dict[str, Any], plan: DemoPlan) -> None:
    rows = ArmsResult.read(plan.folder / "results").of("routed")
    assert {row.adapter for row in rows if row.kind == "general"} == {None}
    assert {row.adapter for row in rows if row.kind == "global"} == {summary["adapter"]}


def test_a_wrecked_adapter_is_rejected_and_the_good_one_goes_on_serving(
    summary: dict[str, Any], plan: DemoPlan, settings: Settings
) -> None:
    async def distil() -> DistilReport:
        own = settings.model_copy(update={"store": f"sqlite:///{plan.folder / 'memory.db'}"})
        async with AsyncMemory(NAMESPACE, settings=own) as memory:
            return await memory.distil(WRECKING)

    report = anyio.run(distil)
    registry = AdapterRegistry(plan.folder / "adapters")
    assert not report.decision.accepted
    assert {"local_recall", "perplexity_ratio"} <= {verdict.metric for verdict in report.decision.failures}
    assert registry.state(report.manifest.name) is State.REJECTED
    serving = registry.serving(NAMESPACE)
    assert serving is not None
    assert serving.name == summary["adapter"]
