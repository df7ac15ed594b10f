"""The demo's summary has the promised form, and a second run makes nothing anew (with a tiny random model)."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rag_tuned_memory.adapters import AdapterRegistry
from rag_tuned_memory.demo.run import main, run_demo
from rag_tuned_memory.demo.show import Screen
from rag_tuned_memory.demo.steps import DemoPlan
from rag_tuned_memory.distil.recipe import Gate, LoraRecipe, Mixture, Recipe
from rag_tuned_memory.evaluation.arms import ArmsLimits
from rag_tuned_memory.evaluation.results import ARMS, ArmsResult

QUICK = Recipe(
    lora=LoraRecipe(rank=4, alpha=8),
    mixture=Mixture(exposures=1, matched=0.1, mismatched=0.1, reading=0.1, replay=0),
    learning_rate=1e-2,
    context_tokens=400,
    max_length=1200,
)
ANYTHING = Gate(
    local_recall=0,
    global_recall=0,
    abstention=0,
    general_agreement=0,
    perplexity_ratio=1e9,
    unique_answers=0,
    canary_margin=1e-9,
    canary_lead=0,
)


@pytest.fixture(autouse=True)
def tiny_settings(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTM_MODEL", str(tiny_model))
    monkeypatch.setenv("RTM_EMBEDDER", "hashing")
    monkeypatch.setenv("RTM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RTM_STORE", raising=False)


def plan(folder: Path, gate: Gate = ANYTHING) -> DemoPlan:
    return DemoPlan(
        folder=folder,
        episodes=4,
        fresh=1,
        recipe=QUICK.model_copy(update={"gate": gate}),
        limits={"local": 4, "global": 4, "unknown": 3, "general": 2, "fresh": 3},
        arms=ArmsLimits(max_new_tokens=4, token_budget=200, full_context_tokens=900, sample={"full_context": 1}),
    )


def show(plan: DemoPlan) -> tuple[dict[str, Any], str]:
    out = StringIO()
    summary = run_demo(plan, Screen(Console(file=out, width=120)))
    return summary, out.getvalue()


def test_the_summary_has_the_promised_form_and_a_second_run_shows_it_again(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    summary, shown = show(plan(folder))
    assert json.loads((folder / "summary.json").read_text()) == summary
    kinds = {"local", "global", "fresh", "unknown", "general"}
    assert set(summary["arms"]) == set(ARMS)
    assert all(set(by_kind) == kinds for by_kind in summary["arms"].values())
    assert all(0 <= share <= 1 for by_kind in summary["arms"].values() for share in by_kind.values())
    assert set(summary["tokens"]) == set(ARMS)
    assert summary["gate"]["accepted"] is True
    assert {"local_recall", "perplexity_ratio"} <= set(summary["gate"]["metrics"])
    assert summary["distil"]["tokens_per_second"] > 0
    assert summary["distil"]["seconds"] > 0
    assert summary["distil"]["peak_memory_bytes"] > 2**20
    assert (folder / summary["report"]).read_text().startswith("<!")
    assert {path.name for path in (folder / "results").iterdir()} >= {"rows.jsonl", "arms.png", "arms.svg"}
    assert ArmsResult.read(folder / "results").summary()["arms"] == summary["arms"]
    assert summary["arms"]["none"]["general"] == 1.0
    assert all(arm.replace("_", " ") in shown for arm in ARMS)
    assert "tokens/s" in shown

    started = time.monotonic()
    again, shown = show(plan(folder))
    assert again == summary
    assert "Nothing changed" in shown
    assert time.monotonic() - started < 3
    assert len(AdapterRegistry(folder / "adapters").list()) == 1


def test_another_recipe_or_history_is_run_anew(tmp_path: Path) -> None:
    first = plan(tmp_path / "demo")
    made, _ = show(first)
    (tmp_path / "demo" / "mine.txt").write_text("not the demo's")
    changed, shown = show(replace(first, episodes=5))
    assert "Nothing changed" not in shown
    assert changed["stamp"]["episodes"] == 5
    assert changed["stamp"]["data_sha256"] != made["stamp"]["data_sha256"]
    assert len(AdapterRegistry(tmp_path / "demo" / "adapters").list()) == 1
    assert (tmp_path / "demo" / "mine.txt").exists()


def test_after_an_interruption_the_adapter_that_serves_is_not_trained_again(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    made, _ = show(plan(folder))
    (folder / "summary.json").unlink()
    again, shown = show(plan(folder))
    assert "Nothing changed" not in shown
    assert again["arms"] == made["arms"]
    assert len(AdapterRegistry(folder / "adapters").list()) == 1


def test_a_rejected_adapter_serves_nobody_and_the_demo_says_so(tmp_path: Path) -> None:
    summary, shown = show(plan(tmp_path / "demo", Gate()))
    assert summary["gate"]["accepted"] is False
    assert "rejected" in shown
    assert set(summary["arms"]) == {"none", "full_context", "retrieval", "routed"}
    assert AdapterRegistry(tmp_path / "demo" / "adapters").serving("demo") is None


def test_what_goes_wrong_is_one_line_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RTM_MODEL", "no such model")
    assert main(["--folder", str(tmp_path / "demo")]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "no model is named 'no such model'" in shown
    assert "Traceback" not in shown
