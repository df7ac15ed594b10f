"""Adapters that were trained badly on purpose, and what the gate says of each. None of them may serve.

The demo's history is distilled with a learning rate that wrecks the model, with far too few tokens, and with nothing
against forgetting at too high a rate. Writes ``result.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio

from rag_tuned_memory import AsyncMemory
from rag_tuned_memory.adapters import State
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.distil.recipe import Mixture, Recipe
from rag_tuned_memory.errors import TrainingDiverged
from rag_tuned_memory.evaluation.stamp import code_hash, hash_of, machine, prompts_hash, versions
from rag_tuned_memory.settings import Settings

HERE = Path(__file__).parent
BAD = {
    "wrecking learning rate": Recipe(learning_rate=0.5, max_tokens=12_000),
    "far too few tokens": Recipe(max_tokens=6_000),
    "no replay, too high a rate": Recipe(
        learning_rate=1.5e-2, max_tokens=25_000, mixture=Mixture(replay=0, unknown=0, reading=0)
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="where store and runs are put; a temporary folder by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = anyio.run(distil_all, given.home or Path(scratch))
    (HERE / "result.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 1 if any(found["accepted"] for found in results["runs"].values()) else 0


async def distil_all(home: Path) -> dict[str, Any]:
    history = incidents("gate", episodes=20)
    runs = {}
    async with AsyncMemory("gate", settings=Settings(home=home, store=f"sqlite:///{home / 'memory.db'}")) as memory:
        await memory.record_many(history)
        for name, recipe in BAD.items():
            runs[name] = await distil(memory, recipe)
            print(f"{name}: {runs[name]['summary']}")
    return {"runs": runs, "stamp": stamp([one.content_hash for one in history])}


async def distil(memory: AsyncMemory, recipe: Recipe) -> dict[str, Any]:
    changed = recipe.model_dump(mode="json", exclude_defaults=True)
    try:
        report = await memory.distil(recipe)
    except TrainingDiverged as error:
        return {"recipe": changed, "accepted": False, "summary": str(error), "state": None, "metrics": {}}
    assert memory.registry.serving("gate") is None or report.decision.accepted
    state: State = memory.registry.state(report.manifest.name)
    return {
        "recipe": changed,
        "accepted": report.decision.accepted,
        "summary": report.decision.summary,
        "state": state.value,
        "metrics": {name: value and round(value, 4) for name, value in report.manifest.metrics.items()},
        "tokens": report.manifest.train.tokens,
    }


def stamp(episodes: list[str]) -> dict[str, Any]:
    return {
        "model": Settings().model,
        "data_sha256": hash_of(sorted(episodes)),
        "prompts_sha256": prompts_hash(),
        "code_sha256": code_hash(),
        "versions": versions(),
        "machine": machine(),
    }


if __name__ == "__main__":
    sys.exit(main())
