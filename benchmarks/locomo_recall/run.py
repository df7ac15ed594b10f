"""Evidence recall on a file in LoCoMo's form, through the same path as ``Memory.recall``.

Run it with ``python benchmarks/locomo_recall/run.py FILE [--cache build] [--k 10] [--variants]``; it writes
``result.json`` beside this file. Rows name questions by sample and number: the data set's text is not repeated here.

``--variants`` also measures recall with single signals left out or weighted otherwise, and a leave-one-conversation-out
view: the variation that is best on all conversations but one, measured on this one. This estimates what weights reach
on conversations that had no say in choosing them; the defaults' own figure is flattered where these conversations had.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import anyio
import numpy as np
from rich.progress import Progress

from rag_tuned_memory.embedding import SentenceEmbedder, Vectors
from rag_tuned_memory.embedding.base import EmbedderIdentity
from rag_tuned_memory.evaluation.recall import ADVERSARIAL, evaluate_recall
from rag_tuned_memory.evaluation.stamp import machine, versions
from rag_tuned_memory.models import pull
from rag_tuned_memory.recall import Weights
from rag_tuned_memory.store import open_store

DEFAULT = Weights()
ABLATIONS = {
    "meaning only": Weights(dense=1, words=0, neighbour=0, actor=0, episode=0),
    "words only": Weights(dense=0, words=1, neighbour=0, actor=0, episode=0),
    "meaning and words": Weights(neighbour=0, actor=0, episode=0),
    "and neighbours": Weights(actor=0, episode=0),
    "and the speaker": Weights(episode=0),
    "and the episode (default)": DEFAULT,
}
VARIATIONS = {
    "default": DEFAULT,
    "meaning 0.4, words 0.6": replace(DEFAULT, dense=0.4, words=0.6),
    "meaning 0.6, words 0.4": replace(DEFAULT, dense=0.6, words=0.4),
    "neighbour 0.3": replace(DEFAULT, neighbour=0.3),
    "neighbour 0.7": replace(DEFAULT, neighbour=0.7),
    "actor 0.1": replace(DEFAULT, actor=0.1),
    "actor 0.3": replace(DEFAULT, actor=0.3),
    "episode 0.2": replace(DEFAULT, episode=0.2),
    "episode 0.5": replace(DEFAULT, episode=0.5),
}


class Remembering:
    """An embedder that embeds a text once, so that further variants cost only the search."""

    def __init__(self, inner: SentenceEmbedder) -> None:
        self._inner = inner
        self._known: dict[str, np.ndarray] = {}

    @property
    def identity(self) -> EmbedderIdentity:
        """The inner embedder's."""
        return self._inner.identity

    async def embed(self, texts: Sequence[str], *, kind: Literal["passage", "query"] = "passage") -> Vectors:
        """See ``Embedder``."""
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if new:
            self._known.update(zip(new, await self._inner.embed(new, kind=kind), strict=True))
        return np.stack([self._known[text] for text in texts])


class Benchmark:
    """One file, one embedder, and a bar that shows how far it is."""

    def __init__(self, file: Path, embedder: Remembering, bars: Progress) -> None:
        self.file, self.embedder, self.bars = file, embedder, bars

    async def measure(self, title: str, weights: Weights, k: int) -> dict[str, Any]:
        """One evaluation in an empty store."""
        task = self.bars.add_task(title, total=None)

        def progress(what: str, done: int, total: int) -> None:
            self.bars.update(task, description=f"{title}: {what}", completed=done, total=total)

        return await evaluate_recall(
            self.file,
            embedder=self.embedder,
            store_factory=lambda: open_store("sqlite:///:memory:"),
            k=k,
            weights=weights,
            progress=progress,
        )


def conversations(result: dict[str, Any]) -> dict[str, list[float]]:
    """The recall of each question of categories 1 to 4, by conversation."""
    found: dict[str, list[float]] = {}
    for row in result["rows"]:
        if row["category"] != ADVERSARIAL:
            found.setdefault(row["sample_id"], []).append(row["recall"])
    return found


def standard_error(result: dict[str, Any], rounds: int = 1000) -> float:
    """By bootstrap over questions."""
    values = [value for some in conversations(result).values() for value in some]
    chance = random.Random(0)
    return statistics.stdev(statistics.fmean(chance.choices(values, k=len(values))) for _ in range(rounds))


def leave_one_out(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """For each conversation: the variation that is best on the others, and what it reaches here beside the default."""
    by_name = {name: conversations(result) for name, result in results.items()}
    rows, chosen, default = [], [], []
    for left in by_name["default"]:

        def elsewhere(name: str, left: str = left) -> float:
            return statistics.fmean(v for sample, values in by_name[name].items() if sample != left for v in values)

        best = max(by_name, key=elsewhere)
        chosen += by_name[best][left]
        default += by_name["default"][left]
        here = {name: round(statistics.fmean(by_name[name][left]), 4) for name in (best, "default")}
        rows.append({"conversation": left, "chosen": best, "recall": here[best], "default": here["default"]})
    return {"chosen": round(statistics.fmean(chosen), 4), "default": round(statistics.fmean(default), 4), "rows": rows}


def figures(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "rows"}


def rows_without_text(result: dict[str, Any]) -> list[list[Any]]:
    """``[sample, number of the question with evidence, category, evidence, recalled, recall]`` for each question."""
    number: Counter[str] = Counter()
    rows = []
    for row in result["rows"]:
        sample = row["sample_id"]
        number[sample] += 1
        found = [row["category"], row["evidence"], row["recalled"], round(row["recall"], 4)]
        rows.append([sample, number[sample], *found])
    return rows


async def run(options: argparse.Namespace) -> dict[str, Any]:
    embedder = Remembering(SentenceEmbedder(pull("all-MiniLM-L6-v2", cache=options.cache)))
    with Progress(transient=True) as bars:
        benchmark = Benchmark(options.file, embedder, bars)
        started = time.perf_counter()
        default = await benchmark.measure("default", DEFAULT, options.k)
        seconds = time.perf_counter() - started
        report: dict[str, Any] = {
            **figures(default),
            "standard_error": round(standard_error(default), 4),
            "by_conversation": {name: round(statistics.fmean(v), 4) for name, v in conversations(default).items()},
            "weights": asdict(DEFAULT),
            "embedder": embedder.identity.model_dump(),
            "data_sha256": hashlib.sha256(options.file.read_bytes()).hexdigest(),
            "seconds": round(seconds, 1),
            "versions": versions(),
            "machine": machine(),
        }
        if options.variants:
            at = {k: await benchmark.measure(f"k = {k}", DEFAULT, k) for k in (1, 5, 20)}
            report["by_k"] = {str(k): round(found["recall_at_k"], 4) for k, found in at.items()}
            ablations = {name: await benchmark.measure(name, w, options.k) for name, w in ABLATIONS.items()}
            report["signals"] = {name: round(found["recall_at_k"], 4) for name, found in ablations.items()}
            varied = {name: await benchmark.measure(name, w, options.k) for name, w in VARIATIONS.items()}
            report["variations"] = {name: round(found["recall_at_k"], 4) for name, found in varied.items()}
            report["leave_one_conversation_out"] = leave_one_out(varied)
    return {**report, "rows": rows_without_text(default)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("build"))
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    report = anyio.run(run, options)
    rows = report.pop("rows")
    print(json.dumps(report, indent=2))
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    whole = json.dumps(report, indent=1).removesuffix("\n}")
    options.output.write_text(f'{whole},\n "rows": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
