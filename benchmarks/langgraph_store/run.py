"""What a put, a get and a search cost in ``RagTunedStore``, ``InMemoryStore`` and LangGraph's ``SqliteStore``.

Run it with ``python benchmarks/langgraph_store/run.py``; it writes ``result.json`` beside this file. The three take
turns with the same items, queries and embedder (of this project). Both SQLite stores keep a file; ours waits until a
write is on the disk, as LangGraph's does. Wall time of one call, from a thread without an event loop.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
from langgraph.store.base import BaseStore, PutOp
from langgraph.store.memory import InMemoryStore
from langgraph.store.sqlite import SqliteStore

from langchain_rag_tuned_memory import RagTunedStore
from rag_tuned_memory import Memory, Settings
from rag_tuned_memory.embedding import open_embedder
from rag_tuned_memory.evaluation.stamp import machine, versions

WORDS = (
    "tea",
    "coffee",
    "disk",
    "host",
    "billing",
    "deploy",
    "refund",
    "cache",
    "morning",
    "green",
    "bicycle",
    "paris",
)
USERS = 20


def value(number: int) -> dict[str, Any]:
    words = random.Random(number)
    return {
        "text": " ".join(words.choice(WORDS) for _ in range(12)),
        "kind": words.choice(["food", "travel", "work"]),
        "number": number,
    }


def address(number: int) -> tuple[tuple[str, str], str]:
    return ("users", f"u{number % USERS}"), f"item-{number}"


def stores(settings: Settings, folder: Path, memory: Memory) -> dict[str, BaseStore]:
    embedder = open_embedder(settings)

    def embed(texts: Sequence[str]) -> list[list[float]]:
        async def vectors() -> Any:
            return await embedder.embed(list(texts))

        return [row.tolist() for row in anyio.run(vectors)]

    index: Any = {"dims": embedder.identity.dimension, "embed": embed, "fields": ["$"]}
    connection = sqlite3.connect(folder / "langgraph.db", check_same_thread=False, isolation_level=None)
    indexed = hasattr(connection, "enable_load_extension")  # many builds of Python leave it out
    sqlite = SqliteStore(connection, index=index if indexed else None)
    sqlite.setup()
    return {"RagTunedStore": RagTunedStore(memory), "SqliteStore": sqlite, "InMemoryStore": InMemoryStore(index=index)}


def calls(store: BaseStore, items: int) -> dict[str, Callable[[int], Any]]:
    """The measured calls by name, each with the number of its turn."""
    return {
        "put a new item": lambda n: store.put(*address(items + n), value(items + n)),
        "put over an item": lambda n: store.put(*address(n), value(n)),
        "get": lambda n: store.get(*address(n)),
        "search one user, 10 items": lambda n: store.search(address(n)[0], limit=10),
        "search all with a filter": lambda n: store.search(("users",), filter={"kind": "food", "number": {"$gt": n}}),
        "search one user by a query": lambda n: store.search(address(n)[0], query=value(n)["text"], limit=5),
        "search all by a query": lambda n: store.search((), query=value(n)["text"], limit=5),
        "list namespaces": lambda n: store.list_namespaces(),
    }


def fill(store: BaseStore, items: int) -> None:
    for start in range(0, items, 100):
        store.batch([PutOp(*address(number), value(number)) for number in range(start, min(items, start + 100))])


def measure(every: dict[str, BaseStore], items: int, turns: int) -> dict[str, dict[str, dict[str, float]]]:
    times: dict[str, dict[str, list[float]]] = {}
    works = {name: calls(store, items) for name, store in every.items()}
    sqlite = every["SqliteStore"]
    if isinstance(sqlite, SqliteStore) and sqlite.index_config is None:  # it would ignore the query
        works["SqliteStore"] = {call: work for call, work in works["SqliteStore"].items() if "query" not in call}
    for turn in range(turns):
        for call in next(iter(works.values())):
            for name, work in works.items():
                if call not in work:
                    continue
                began = time.perf_counter()
                work[call](turn)
                times.setdefault(call, {}).setdefault(name, []).append(time.perf_counter() - began)
    return {
        call: {
            name: {
                "median_ms": round(1000 * statistics.median(some), 2),
                "p95_ms": round(1000 * sorted(some)[int(0.95 * (len(some) - 1))], 2),
            }
            for name, some in by_store.items()
        }
        for call, by_store in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--embedder", default="hashing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    options = parser.parse_args()
    result: dict[str, Any] = {"embedder": options.embedder, "turns": options.turns, "items": {}}
    for items in options.items:
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(home=Path(folder), embedder=options.embedder)
            with Memory("benchmark", settings=settings) as memory:
                every = stores(settings, Path(folder), memory)
                for name, store in every.items():
                    began = time.perf_counter()
                    fill(store, items)
                    print(f"{name}: {items} items in {time.perf_counter() - began:.1f} s", flush=True)
                result["items"][items] = measure(every, items, options.turns)
                for call, by_store in result["items"][items].items():
                    print(f"  {call:28}", *(f"{name} {one['median_ms']:9.2f} ms" for name, one in by_store.items()))
    result |= {"load_average_1_minute": round(os.getloadavg()[0], 2), "machine": machine(), "versions": versions()}
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
