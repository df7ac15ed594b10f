"""Recorded histories moved SQLite → Weaviate → SQLite: are they the same, and is the same recalled?

``run.py weaviate://host:8080?grpc=50051 FILE...`` imports each file (any form that ``rtm import`` reads) into a
namespace of its own, moves it there and back, compares the content hashes of all three stores, and asks each store the
same questions: LoCoMo's own, or questions about single episodes where a file has none. Writes ``result.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio

from rag_tuned_memory.distil.gather import select
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.embedding import open_embedder
from rag_tuned_memory.errors import RagTunedMemoryError
from rag_tuned_memory.evaluation.questions import questions_for
from rag_tuned_memory.evaluation.stamp import code_hash, machine, versions
from rag_tuned_memory.formats import IMPORTERS, detect_format
from rag_tuned_memory.formats.locomo import read_locomo_questions
from rag_tuned_memory.recall import Recall
from rag_tuned_memory.settings import Settings
from rag_tuned_memory.store import EpisodeStore, open_store
from rag_tuned_memory.store.migrating import migrate

RESULT = Path(__file__).parent / "result.json"
K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of the Weaviate server")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--questions", type=int, default=100, help="of each file")
    given = parser.parse_args()
    found = anyio.run(there_and_back, given)
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


async def there_and_back(given: argparse.Namespace) -> dict[str, Any]:
    embedder = open_embedder(Settings())
    url = f"{given.url}{'&' if '?' in given.url else '?'}prefix=RtmMoved{uuid4().hex[:6]}"
    with tempfile.TemporaryDirectory() as folder:
        stores = {
            "sqlite": open_store(f"sqlite:///{folder}/first.db"),
            "weaviate": open_store(url),
            "sqlite again": open_store(f"sqlite:///{folder}/second.db"),
        }
        engines = {name: Recall(store, embedder) for name, store in stores.items()}
        results = {file.stem: await one_file(file, stores, engines, given.questions) for file in given.files}
        for store in stores.values():
            await store.close()
    return results | {"stamp": {"code_sha256": code_hash(), "versions": versions(), "machine": machine()}}


async def one_file(
    file: Path, stores: dict[str, EpisodeStore], engines: dict[str, Recall], count: int
) -> dict[str, Any]:
    namespace = file.stem
    await engines["sqlite"].index_many(IMPORTERS[detect_format(file)](file, namespace))
    seconds = {}
    for name, source, target in (("there", "sqlite", "weaviate"), ("back", "weaviate", "sqlite again")):
        began = time.perf_counter()
        moved = await migrate(stores[source], stores[target], namespace)
        seconds[name] = round(time.perf_counter() - began, 1)
    hashes = {name: await content(store, namespace) for name, store in stores.items()}
    questions = await ask_for(file, stores["sqlite"], namespace, count)
    recalled = {name: [await ids(engine, namespace, text) for text in questions] for name, engine in engines.items()}
    return {
        "trajectories": moved.moved,
        "seconds": seconds,
        "content_hashes_identical": hashes["sqlite"] == hashes["weaviate"] == hashes["sqlite again"],
        "questions": len(questions),
        "weaviate": agreement(recalled["sqlite"], recalled["weaviate"]),
        "sqlite again": agreement(recalled["sqlite"], recalled["sqlite again"]),
    }


async def content(store: EpisodeStore, namespace: str) -> list[tuple[str, str]]:
    return sorted([(one.trajectory.id, one.content_hash) async for one in store.scan(namespace)])


async def ask_for(file: Path, store: EpisodeStore, namespace: str, count: int) -> list[str]:
    """The file's own questions, or some about its episodes."""
    try:
        own = [one.question for sample in read_locomo_questions(file).values() for one in sample]
        return own[:: max(1, len(own) // count)][:count]
    except RagTunedMemoryError:
        selection = await select(store, namespace, Recipe(local_facts=2))
        return [one.text for one in questions_for(selection) if one.kind == "local"][:count]


async def ids(engine: Recall, namespace: str, text: str) -> list[tuple[str, int, int]]:
    found = await engine.recall(namespace, text, k=K)
    return [(one.trajectory_id, one.step, one.chunk) for one in found.results]


def agreement(wanted: list[list[Any]], found: list[list[Any]]) -> dict[str, float]:
    """Shares of questions with the same ten passages in the same order, the same ten, and of passages in common."""
    pairs = list(zip(wanted, found, strict=True))
    return {
        "same_in_order": statistics.mean(one == other for one, other in pairs),
        "same_set": statistics.mean(set(one) == set(other) for one, other in pairs),
        "in_common": statistics.mean(len(set(one) & set(other)) / max(1, len(one)) for one, other in pairs),
        "same_first": statistics.mean(one[:1] == other[:1] for one, other in pairs),
    }


if __name__ == "__main__":
    main()
