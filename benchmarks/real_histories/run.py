"""The whole loop on a recorded history: import, recall, distil, ask. Run it with ``run.py NAME FILE``.

``FILE`` is in any form that ``rtm import`` reads (tau-bench runs, LoCoMo conversations, …); all of it becomes one
namespace. Recall: of the questions about single episodes, in words that no training saw, the share whose episode is
among the first ``k`` results. Distilling and asking go as a user's would, with fewer facts of each episode, so that a
run takes minutes on two cores. ``--abstention 0`` leaves declining to routing, where the default gate would reject an
adapter for what it does not decline by itself. Figures go to ``result.json`` under NAME; questions and answers are not
repeated there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio

from rag_tuned_memory import AsyncMemory
from rag_tuned_memory.distil.gather import Selection, select
from rag_tuned_memory.distil.recipe import Gate, Recipe
from rag_tuned_memory.evaluation.arms import ArmsLimits, evaluate_arms
from rag_tuned_memory.evaluation.questions import KINDS, Question, questions_for
from rag_tuned_memory.evaluation.results import ARMS
from rag_tuned_memory.evaluation.stamp import code_hash, machine, versions
from rag_tuned_memory.formats import IMPORTERS, detect_format
from rag_tuned_memory.learning.events import Event
from rag_tuned_memory.memory.wiring import Parts
from rag_tuned_memory.settings import Settings

RESULT = Path(__file__).parent / "result.json"
K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="under which the figures are kept")
    parser.add_argument("file", type=Path)
    parser.add_argument("--local-facts", type=int, default=1, help="of each episode")
    parser.add_argument("--per-kind", type=int, default=20, help="questions of each kind for the arms")
    parser.add_argument("--abstention", type=float, help="least share that the adapter alone declines; the gate's own")
    parser.add_argument("--home", type=Path, help="where store and adapters are put; a temporary folder by default")
    given = parser.parse_args()
    gate = Gate() if given.abstention is None else Gate(abstention=given.abstention)
    recipe = Recipe(local_facts=given.local_facts, gate=gate)
    with tempfile.TemporaryDirectory() as scratch:
        found = anyio.run(whole_loop, given.file, given.home or Path(scratch), recipe, given.per_kind)
    kept = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    kept[given.name] = found
    RESULT.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


async def whole_loop(file: Path, home: Path, recipe: Recipe, per_kind: int) -> dict[str, Any]:
    settings = Settings(home=home, store=f"sqlite:///{home / 'memory.db'}")
    parts = Parts(settings)
    memory = AsyncMemory(
        "history",
        settings=settings,
        store=parts.store(),
        embedder=parts.embedder(),
        backend=parts.backend(),
        registry=parts.registry,
    )
    try:
        imported = await record(memory, file)
        selection = await select(parts.store(), memory.namespace, recipe)
        recalled = await recall(memory, selection)
        report = await memory.distil(recipe, on_event=tell)
        questions = questions_for(selection, limits=dict.fromkeys(KINDS, per_kind))
        accepted = report.decision.accepted
        result = await evaluate_arms(
            memory.namespace,
            questions,
            recall=parts.recall(),
            backend=parts.backend(),
            live=parts.live(),
            arms=[arm for arm in ARMS if arm != "full_context" and (accepted or arm not in ("tuned", "both"))],
            limits=ArmsLimits(),
        )
    finally:
        await memory.close()
        for owned in parts.owned:
            await owned.close()
    summary = result.summary()
    return {
        "import": imported,
        "recall": recalled,
        "facts": {kind: sum(fact.kind == kind for fact in selection.facts) for kind in ("local", "global")},
        "distil": {
            "accepted": accepted,
            "summary": report.decision.summary,
            "metrics": {name: None if math.isnan(one) else one for name, one in report.evaluation.metrics.items()},
            "train": report.manifest.train.model_dump(mode="json"),
            "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
        },
        "arms": summary["arms"],
        "tokens": summary["tokens"],
        "questions": summary["questions"],
        "stamp": {"code_sha256": code_hash(), "versions": versions(), "machine": machine()},
    }


async def record(memory: AsyncMemory, file: Path) -> dict[str, Any]:
    started = time.perf_counter()
    await memory.record_many(IMPORTERS[detect_format(file)](file, memory.namespace))
    stats = await memory.stats()
    return {
        "trajectories": stats.store.trajectories,
        "passages": stats.store.passages,
        "seconds": round(time.perf_counter() - started, 1),
    }


async def recall(memory: AsyncMemory, selection: Selection) -> dict[str, Any]:
    local: list[Question] = [one for one in questions_for(selection) if one.kind == "local"]
    of = {fact.id: set(fact.trajectory_ids) for fact in selection.facts}
    hits, seconds = [], []
    for question in local:
        started = time.perf_counter()
        found = await memory.recall(question.text, k=K)
        seconds.append(time.perf_counter() - started)
        assert question.fact_id is not None
        hits.append(any(result.trajectory_id in of[question.fact_id] for result in found.results))
    return {
        "questions": len(hits),
        f"episode_recall_at_{K}": statistics.mean(hits),
        "median_seconds": round(statistics.median(seconds), 4),
    }


def tell(event: Event) -> None:
    if event.training is None or event.done % 50 == 0:
        print(event.stage, event.done, event.total, event.detail, flush=True)


if __name__ == "__main__":
    main()
