"""Latency of the whole recall path, ``Recall.recall``, with 100,000 passages in one namespace.

Run it with ``python benchmarks/recall_path/run.py``; it writes ``result.json`` beside this file. History and queries
are those of ``recall_100k``, whose script must lie beside this folder; the query's vector is given, so that embedding
is not part of the time. A plain numpy scan of the same vectors takes turns with it in the same run. Wall time, and CPU
time over all threads, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import anyio
import numpy as np

from rag_tuned_memory.embedding.base import EmbedderIdentity, Vectors
from rag_tuned_memory.evaluation.stamp import machine, versions
from rag_tuned_memory.recall import Recall
from rag_tuned_memory.store.sqlite import SqliteStore

HISTORY = Path(__file__).parent.parent / "recall_100k" / "run.py"


def history_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recall_100k_run", HISTORY)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{HISTORY} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Given:
    """An embedder that only looks vectors up."""

    def __init__(self, identity: EmbedderIdentity, known: dict[str, np.ndarray]) -> None:
        self.identity = identity
        self._known = known

    async def embed(self, texts: Sequence[str], *, kind: Literal["passage", "query"] = "passage") -> Vectors:
        """The vectors of ``texts``."""
        return np.stack([self._known[text] for text in texts])


class Times:
    """Wall and CPU seconds of one arm."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._started = (0.0, 0.0)

    def __enter__(self) -> Times:
        self._started = (time.perf_counter(), time.process_time())
        return self

    def __exit__(self, *_: object) -> None:
        self.wall.append(time.perf_counter() - self._started[0])
        self.cpu.append(time.process_time() - self._started[1])

    def milliseconds(self) -> dict[str, float]:
        """Median, 95th percentile and best of wall time, and the median of CPU time."""
        ordered = sorted(self.wall)
        return {
            "median": round(statistics.median(ordered) * 1000, 2),
            "p95": round(ordered[int(0.95 * (len(ordered) - 1))] * 1000, 2),
            "best": round(ordered[0] * 1000, 2),
            "median_cpu": round(statistics.median(self.cpu) * 1000, 2),
        }


async def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    recorded = history_module()
    history = recorded.History(options.passages, 384, options.seed)
    identity = EmbedderIdentity(model="clustered", revision=str(options.seed), dimension=384)
    store = SqliteStore(folder / "memory.db")
    await recorded.record(store, history, identity)
    queries = history.queries(options.queries + 5)
    engine = Recall(store, Given(identity, dict(queries)))
    whole, scan = Times(), Times()
    for text, vector in queries:
        with whole:
            found = await engine.recall(recorded.NAMESPACE, text, k=options.k)
        with scan:
            recorded.plain_scan(history.vectors, vector, options.k)
        if len(found.results) != options.k:
            raise SystemExit(f"{len(found.results)} results instead of {options.k} for {text!r}")
    await store.close()
    for times in (whole, scan):
        del times.wall[:5], times.cpu[:5]  # what warms the caches
    return {
        "passages": options.passages,
        "queries": options.queries,
        "k": options.k,
        "milliseconds": {"recall": whole.milliseconds(), "numpy scan": scan.milliseconds()},
        "load_average_1_minute": round(os.getloadavg()[0], 2),
        "machine": machine(),
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = anyio.run(run, options, Path(folder))
    text = json.dumps(result, indent=2) + "\n"
    Path(__file__).with_name("result.json").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
