"""Recall latency and accuracy of the embedded store with 100,000 passages in one namespace.

Beside ``SqliteStore.candidates`` the same queries go through a plain numpy float32 scan of the same vectors, in the
same run and in turns. Texts are sentences of words with Zipf's frequencies and identifiers; vectors are clustered
(50 topics of about 2,000 passages, without further order inside a topic, which is hard for one bit a dimension) with
a common mean, as sentence embeddings have. All seeded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import apsw
import numpy as np

from rag_tuned_memory.embedding.base import EmbedderIdentity
from rag_tuned_memory.store.base import Filter, Passage
from rag_tuned_memory.store.sqlite import SqliteStore
from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory

NAMESPACE = "benchmark"
STEPS = 50
TOPICS = 50
COMMON = ["the", "of", "to", "a", "and", "in", "is", "it", "for", "that", "was", "on", "with", "as", "at", "by", "from"]
SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
TOOLS = ("restart", "query_metrics", "page_owner", "roll_back", "read_log")


class History:
    """Seeded passages: ``vectors`` of shape ``(passages, dimension)`` and a text for each."""

    def __init__(self, passages: int, dimension: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.passages, self.dimension = passages, dimension
        self.words = np.array(COMMON + [f"{a}{b}{c}" for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES[::2]])
        frequency = 1 / np.arange(1, len(self.words) + 1)
        self.cumulative = np.cumsum(frequency / frequency.sum())
        self.mean = self._direction(1) * 0.5
        self.centres = self._direction(TOPICS)
        self.vectors = self._near(self.centres[self.random.integers(0, len(self.centres), passages)])

    def _direction(self, rows: int) -> np.ndarray:
        vectors = self.random.standard_normal((rows, self.dimension))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _near(self, centres: np.ndarray) -> np.ndarray:
        vectors = self.mean + centres + 0.9 * self._direction(len(centres))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def _words(self, count: int) -> list[str]:
        """Words with Zipf's frequencies."""
        return self.words[np.searchsorted(self.cumulative[:-1], self.random.random(count))].tolist()

    def text(self, number: int) -> str:
        """A passage's text: 12 to 40 words and the identifier of its incident."""
        return f"INC-{number // 7} {' '.join(self._words(self.random.integers(12, 40)))}"

    def queries(self, count: int) -> list[tuple[str, np.ndarray]]:
        """Questions: common words, words of Zipf's frequencies, sometimes an identifier."""
        vectors = self._near(self.centres[self.random.integers(0, len(self.centres), count)])
        texts = []
        for number in range(count):
            words = [*self.random.choice(COMMON, 4), *self._words(4)]
            if number % 3 == 0:
                words.append(f"INC-{self.random.integers(0, self.passages // 7)}?")
            texts.append("What " + " ".join(words))
        return list(zip(texts, vectors, strict=True))


async def record(store: SqliteStore, history: History, identity: EmbedderIdentity) -> float:
    """Put all passages, as trajectories of 50 steps; returns the seconds that ``put`` took."""
    seconds = 0.0
    for first in range(0, history.passages, STEPS):
        numbers = range(first, min(first + STEPS, history.passages))
        texts = [history.text(n) for n in numbers]
        tools = [TOOLS[n % len(TOOLS)] if n % 4 == 0 else None for n in numbers]
        steps = tuple(
            Step(kind=StepKind.TOOL_CALL if tool else StepKind.MESSAGE, text=text, actor="agent", tool=tool)
            for text, tool in zip(texts, tools, strict=True)
        )
        trajectory = Trajectory(
            namespace=NAMESPACE, steps=steps, source_id=str(first), outcome=Outcome(success=first % 3 == 0)
        )
        passages = [
            Passage(trajectory.id, i, 0, step.kind, step.text, f"agent: {step.text}", "agent", step.tool)
            for i, step in enumerate(steps)
        ]
        started = time.perf_counter()
        await store.put(trajectory, passages, history.vectors[first : first + len(steps)], identity)
        seconds += time.perf_counter() - started
    return seconds


@contextmanager
def timed(times: dict[str, tuple[float, float]], name: str) -> Iterator[None]:
    """Put wall and processor seconds of the block (all threads) into ``times``."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    times[name] = (time.perf_counter() - wall, time.process_time() - processor)


def plain_scan(vectors: np.ndarray, query: np.ndarray, limit: int) -> np.ndarray:
    """The indices of the nearest ``limit`` rows, best first."""
    scores = vectors @ query
    nearest = np.argpartition(-scores, limit)[:limit]
    return nearest[np.argsort(-scores[nearest])]


async def measure(store: SqliteStore, history: History, arguments: argparse.Namespace) -> dict[str, object]:
    """Ask all queries in turns of store, filtered store and numpy."""
    limit = arguments.limit
    filters = {
        "tool": Filter(tool="restart"),
        "success": Filter(success=True),
    }
    seconds: dict[str, list[float]] = {"store": [], "numpy": [], **{f"store, {name}": [] for name in filters}}
    cpu: dict[str, list[float]] = {name: [] for name in seconds}
    hits_10, hits_limit, texts_found = [], [], []
    number_of = {}
    async for stored in store.scan(NAMESPACE):
        number_of[stored.trajectory.id] = int(stored.trajectory.source_id or 0)
    queries = history.queries(arguments.queries + 5)
    for number, (text, vector) in enumerate(queries):
        times: dict[str, tuple[float, float]] = {}
        with timed(times, "store"):
            found = await store.candidates(NAMESPACE, text, vector, limit=limit)
        with timed(times, "numpy"):
            exact = plain_scan(history.vectors, vector, limit).tolist()
        for name, where in filters.items():
            with timed(times, f"store, {name}"):
                await store.candidates(NAMESPACE, text, vector, limit=limit, where=where)
        if number < 5:
            continue  # the first queries fill caches
        for name, (wall, processor) in times.items():
            seconds[name].append(wall)
            cpu[name].append(processor)
        dense = [number_of[c.passage.trajectory_id] + c.passage.step for c in found][:limit]
        hits_10.append(len(set(dense[:10]) & set(exact[:10])) / 10)
        hits_limit.append(len(set(dense) & set(exact)) / limit)
        texts_found.append(sum(c.bm25 is not None for c in found))
    return {
        "milliseconds": {name: _summary(values) for name, values in seconds.items()},
        "cpu_milliseconds": {name: _summary(values) for name, values in cpu.items()},
        "dense_recall_at_10": round(statistics.mean(hits_10), 4),
        f"dense_recall_at_{limit}": round(statistics.mean(hits_limit), 4),
        "mean_candidates_with_bm25": round(statistics.mean(texts_found), 1),
    }


def _summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "median": round(statistics.median(ordered) * 1000, 2),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))] * 1000, 2),
        "best": round(ordered[0] * 1000, 2),
    }


async def run(arguments: argparse.Namespace) -> dict[str, object]:
    history = History(arguments.passages, arguments.dimension, arguments.seed)
    store = SqliteStore(arguments.database)
    identity = EmbedderIdentity(model="clustered", revision=str(arguments.seed), dimension=arguments.dimension)
    recorded = await record(store, history, identity)
    measured = await measure(store, history, arguments)
    await store.close()
    return {
        "passages": arguments.passages,
        "dimension": arguments.dimension,
        "queries": arguments.queries,
        "limit": arguments.limit,
        "record_seconds": round(recorded, 1),
        **measured,
        "machine": {
            "cpu_cores": os.cpu_count(),
            "load_average_1_minute": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "sqlite": apsw.sqlite_lib_version(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--database", default="build/recall_100k.db")
    parser.add_argument("--out", default=str(Path(__file__).with_name("result.json")))
    arguments = parser.parse_args()
    database = Path(arguments.database)
    database.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    result = anyio.run(run, arguments)
    result["file_megabytes"] = round(database.stat().st_size / 1e6)
    text = json.dumps(result, indent=2) + "\n"
    Path(arguments.out).write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
