"""What the demonstration does, step by step, without a word on the screen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio.to_thread

from rag_tuned_memory.adapters.manifest import Manifest
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.distil.evaluation import QuestionKind
from rag_tuned_memory.distil.gather import select
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.evaluation.arms import ArmsLimits, OnArm, evaluate_arms
from rag_tuned_memory.evaluation.questions import Question, questions_for
from rag_tuned_memory.evaluation.results import ARMS, ArmsResult
from rag_tuned_memory.evaluation.stamp import code_hash, hash_of, versions
from rag_tuned_memory.learning.events import OnEvent
from rag_tuned_memory.memory import AsyncMemory
from rag_tuned_memory.memory.wiring import Parts
from rag_tuned_memory.models import OnProgress, locate, pull, read_info
from rag_tuned_memory.settings import Settings
from rag_tuned_memory.trajectory import Trajectory, canonical_json

NAMESPACE = "demo"
SUMMARY_FILE = "summary.json"
KEY_FILE = "made-from.json"
RESULTS = "results"


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What is recorded, learned and asked. ``limits`` bounds the questions of a kind."""

    folder: Path
    episodes: int = 20
    fresh: int = 4
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    limits: dict[QuestionKind, int] = field(
        default_factory=lambda: {"local": 20, "global": 20, "fresh": 10, "unknown": 10, "general": 10}
    )
    arms: ArmsLimits = field(
        default_factory=lambda: ArmsLimits(
            token_budget=240,
            max_new_tokens=24,
            sample={"none": 8, "full_context": 4, "retrieval": 10, "both": 10},
        )
    )

    @property
    def history(self) -> list[Trajectory]:
        """The episodes that the adapter learns."""
        return incidents(NAMESPACE, episodes=self.episodes)

    @property
    def news(self) -> list[Trajectory]:
        """The episodes that are recorded after the adapter was made."""
        return incidents(NAMESPACE, episodes=self.fresh, skip=self.episodes)

    def settings(self, given: Settings) -> Settings:
        """``given`` with everything but the models' cache in the demo's own folder."""
        return given.model_copy(update={"home": self.folder, "store": f"sqlite:///{self.folder / 'memory.db'}"})


class Demo:
    """One run of the demonstration. Close it when done."""

    def __init__(self, plan: DemoPlan, settings: Settings) -> None:
        self.plan = plan
        self.settings = plan.settings(settings)
        self.key: dict[str, Any] = {}
        self.parts: Parts
        self.memory: AsyncMemory

    def pull(self, on_progress: OnProgress) -> None:
        """Bring both models onto this machine; what is there already takes no time."""
        for name in self._models():
            pull(name, cache=self.settings.cache, on_progress=on_progress)

    def finished(self) -> dict[str, Any] | None:
        """The summary of an earlier run of the very same: data, recipe, code, models, versions. Else None.

        Whatever an earlier run of something else left behind is removed; of the same one, an adapter that serves and
        what was trained so far are kept.
        """
        folder, self.key = self.plan.folder, self._made_from()
        if _read(folder / KEY_FILE) == self.key:
            summary = _read(folder / SUMMARY_FILE)
            if summary is not None and (folder / RESULTS).is_dir():
                return summary
            _remove(folder, "memory.db*", SUMMARY_FILE, RESULTS)
        else:
            _remove(folder, "memory.db*", SUMMARY_FILE, RESULTS, "adapters", "runs")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / KEY_FILE).write_text(json.dumps(self.key, indent=2) + "\n", encoding="utf-8")
        return None

    async def open(self) -> None:
        """Open store, models and registry."""
        self.parts = parts = Parts(self.settings)
        self.memory = await anyio.to_thread.run_sync(
            lambda: AsyncMemory(
                NAMESPACE,
                settings=self.settings,
                store=parts.store(),
                embedder=parts.embedder(),
                backend=parts.backend(),
                registry=parts.registry,
            )
        )

    async def close(self) -> None:
        """Close what ``open`` opened."""
        await self.memory.close()
        for owned in self.parts.owned:
            await owned.close()

    async def distil(self, on_event: OnEvent) -> Manifest:
        """The adapter: the one that serves after an earlier, interrupted run of the same, or a new one."""
        serving = await anyio.to_thread.run_sync(self.parts.registry.serving, NAMESPACE)
        if serving is not None:
            return serving
        return (await self.memory.distil(self.plan.recipe, on_event=on_event)).manifest

    async def questions(self) -> list[Question]:
        """Questions of all kinds. Those about the news (``fresh``) are to be asked when these are recorded."""
        selection = await select(self.parts.store(), NAMESPACE, self.plan.recipe)
        last = selection.stored[-1]
        news = [
            replace(last, trajectory=one, sequence=last.sequence + number, content_hash=one.content_hash)
            for number, one in enumerate(self.plan.news, start=1)
        ]
        return questions_for(selection, fresh=news, seed=self.plan.seed, limits=self.plan.limits)

    async def ask_arms(self, questions: Sequence[Question], on_progress: OnArm) -> ArmsResult:
        """The questions in all arms; where the gate let no adapter serve, in those that need none."""
        live = await anyio.to_thread.run_sync(self.parts.live)
        return await evaluate_arms(
            NAMESPACE,
            questions,
            recall=self.parts.recall(),
            backend=self.parts.backend(),
            live=live,
            arms=ARMS if await live.current(NAMESPACE) else ("none", "full_context", "retrieval", "routed"),
            limits=self.plan.arms,
            seed=self.plan.seed,
            on_progress=on_progress,
        )

    def conclude(self, manifest: Manifest, result: ArmsResult, seconds: float) -> dict[str, Any]:
        """Write rows, plots and ``summary.json``; returns the summary."""
        from rag_tuned_memory.evaluation.plot import plot_arms

        results = self.plan.folder / RESULTS
        result.write(results)
        plot_arms(result, results)
        figures, train = result.summary(), manifest.train
        summary = {
            "arms": figures["arms"],
            "tokens": figures["tokens"],
            "gate": {
                "accepted": manifest.decision.accepted,
                "summary": manifest.decision.summary,
                "metrics": dict(manifest.metrics),
                "reasons": [verdict.model_dump(mode="json") for verdict in manifest.decision.reasons],
            },
            "distil": {
                "tokens_per_second": train.tokens_per_second,
                "seconds": train.seconds,
                "peak_memory_bytes": train.peak_memory_bytes,
                "tokens": train.tokens,
            },
            "adapter": manifest.name,
            "seconds_per_answer": figures["seconds"],
            "calls": figures["calls"],
            "questions": figures["questions"],
            "notes": figures["notes"],
            "report": str(self.report(manifest).relative_to(self.plan.folder)),
            "seconds": round(seconds, 1),
            "stamp": result.stamp,
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        (self.plan.folder / SUMMARY_FILE).write_text(text, encoding="utf-8")
        return summary

    def report(self, manifest: Manifest) -> Path:
        """The HTML report of an adapter."""
        return self.parts.registry.files_of(manifest.name) / "report.html"

    def _models(self) -> list[str]:
        return [name for name in (self.settings.embedder, self.settings.model) if name != "hashing"]

    def _made_from(self) -> dict[str, Any]:
        plan = self.plan
        asked = [sorted(plan.limits.items()), repr(plan.arms), plan.seed]
        return {
            "episodes_sha256": hash_of(one.content_hash for one in (*plan.history, *plan.news)),
            "recipe": plan.recipe.model_dump(mode="json"),
            "questions": json.loads(canonical_json(asked)),
            "code_sha256": code_hash(),
            "models": [read_info(locate(name, self.settings.cache)).revision for name in self._models()],
            "versions": versions(),
        }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _remove(folder: Path, *patterns: str) -> None:
    """Remove what the demo made, and nothing else that lies in the folder."""
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
