"""SQLite, Weaviate and Weaviate's bare client in one run: writing, searching, and what a passage takes.

``run.py weaviate://host:8080?grpc=50051`` needs a server; ``--data FOLDER`` is where that server keeps its data, to
measure bytes. History and queries are those of ``recall_100k``. The stores are written as an import does it, about 250
passages at once, and then as an agent does it, an episode at a time. The bare client writes the same objects with
``batch.stream(concurrency=2)`` into collections of the same schema, and checks nothing. It is asked two ways: one
hybrid query, whose fused scores say less, and the two queries that tell what the store tells. All ask from one event
loop: gRPC polls for one, and a second one slows both. Writes ``result.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import httpx
from weaviate.classes.query import HybridFusion, MetadataQuery

from rag_tuned_memory.embedding.base import EmbedderIdentity
from rag_tuned_memory.evaluation.stamp import code_hash, machine, versions
from rag_tuned_memory.store import Entry, EpisodeStore, Passage, open_store
from rag_tuned_memory.store.weaviate import Address, bridge, parse_address, schema
from rag_tuned_memory.store.weaviate.analysis import searched_terms
from rag_tuned_memory.store.weaviate.connection import new_client
from rag_tuned_memory.store.weaviate.names import tenant
from rag_tuned_memory.store.weaviate.writing import passages_sent
from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory

HERE = Path(__file__).parent
NAMESPACE = "benchmark"
STEPS = 50
WRITERS = 4
AT_ONCE = 5
"""Episodes that are written together: about as many passages as an import gives to the store."""
SINGLE = 60
"""Episodes that are written one by one."""
LIMIT = 50
SETTLE = 45
"""Seconds between writing and asking."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of the Weaviate server")
    parser.add_argument("--data", type=Path, help="the folder where the server keeps its data")
    parser.add_argument("--passages", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=100)
    given = parser.parse_args()
    results = {"passages": {}}
    for passages in given.passages:
        results["passages"][str(passages)] = anyio.run(compare, given, passages)
    results |= {"writers": WRITERS, "limit": LIMIT, "queries": given.queries, "load_average": os.getloadavg()[0]}
    results["stamp"] = {"code_sha256": code_hash(), "versions": versions(), "machine": machine()}
    results["stamp"]["versions"]["weaviate"] = httpx.get(rest(parse_address(given.url), "meta")).json()["version"]
    (HERE / "result.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


async def compare(given: argparse.Namespace, passages: int) -> dict[str, Any]:
    """Write into each and ask each in turns."""
    history = history_module().History(passages, 384, seed=7)
    identity = EmbedderIdentity(model="benchmark", revision="1", dimension=384)
    episodes = list(make_episodes(history))
    queries = history.queries(given.queries + 5)
    prefix = f"RtmBench{passages}"
    ours, bare = f"{prefix}Ours", f"{prefix}Bare"
    clean(given.url, prefix)
    for one in episodes:  # the stems of this made-up language, once for all that use them
        passages_sent(*one, "")
    found: dict[str, Any] = {"sqlite": {}, "weaviate": {}, "bare client": {}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "memory.db"
        sqlite, server = open_store(f"sqlite:///{file}"), open_store(with_prefix(given.url, ours))
        async with bare_client(with_prefix(given.url, bare), identity) as collection:
            for name, store in (("sqlite", sqlite), ("weaviate", server)):
                before = size(given.data)
                found[name] |= per_second(passages, await write(store, episodes, identity))
                if name == "weaviate" and given.data:
                    found[name]["bytes_per_passage"] = round((size(given.data) - before) / passages)
            found["sqlite"]["bytes_per_passage"] = round(file.stat().st_size / passages)
            found["bare client"] |= per_second(passages, await write_bare(collection, episodes))
            found["weaviate"]["writing, of the bare client"] = round(
                found["weaviate"]["passages_per_second"] / found["bare client"]["passages_per_second"], 3
            )
            asked: dict[str, Callable[[str, Any], Awaitable[Any]]] = {
                "sqlite": lambda text, vector: sqlite.candidates(NAMESPACE, text, vector, limit=LIMIT),
                "weaviate": lambda text, vector: server.candidates(NAMESPACE, text, vector, limit=LIMIT),
                "bare client": lambda text, vector: bridge.read(lambda: hybrid(collection, text, vector)),
                "bare client, two queries": lambda text, vector: bridge.read(lambda: two(collection, text, vector)),
            }
            await anyio.sleep(SETTLE)  # the server still works on what was written last
            times = await ask(asked, queries)
        for name, store in (("sqlite", sqlite), ("weaviate", server)):
            one_by_one = per_second(SINGLE * STEPS, await write_singly(store, history, identity))
            found[name]["an episode at a time, passages_per_second"] = one_by_one["passages_per_second"]
        await sqlite.close()
        await server.close()
    found["bare client, two queries"] = {}
    for name, seconds in times.items():
        milliseconds = [1000 * one for one in seconds]
        found[name]["median_ms"] = round(statistics.median(milliseconds), 2)
        found[name]["p95_ms"] = round(statistics.quantiles(milliseconds, n=20)[-1], 2)
    for name in ("bare client", "bare client, two queries"):
        found["weaviate"][f"searching, of the {name}"] = round(
            found["weaviate"]["median_ms"] / found[name]["median_ms"], 3
        )
    clean(given.url, prefix)
    return found


def make_episodes(history: Any) -> Any:
    """Trajectories of 50 steps with passages and vectors."""
    for first in range(0, history.passages, STEPS):
        numbers = range(first, min(first + STEPS, history.passages))
        steps = tuple(Step(kind=StepKind.MESSAGE, text=history.text(n), actor="agent") for n in numbers)
        one = Trajectory(
            namespace=NAMESPACE, steps=steps, source_id=str(first), outcome=Outcome(success=first % 3 == 0)
        )
        yield one, passages_of(one), history.vectors[first : first + len(steps)]


def passages_of(one: Trajectory) -> list[Passage]:
    return [
        Passage(one.id, i, 0, step.kind, step.text, f"agent: {step.text}", "agent") for i, step in enumerate(one.steps)
    ]


async def write(store: EpisodeStore, episodes: list[Any], identity: EmbedderIdentity) -> float:
    """Put all episodes, a few together; seconds."""
    waiting = iter([episodes[first : first + AT_ONCE] for first in range(0, len(episodes), AT_ONCE)])

    async def writer() -> None:
        for some in waiting:
            await store.put_many([Entry(*one) for one in some], identity)

    return await at_once(store, writer, 2)


async def write_singly(store: EpisodeStore, history: Any, identity: EmbedderIdentity) -> float:
    """Put further episodes one by one, some writers at once; seconds."""
    waiting = iter([(one, passages, vectors) for one, passages, vectors in again(history)])

    async def writer() -> None:
        for trajectory, passages, vectors in waiting:
            await store.put(trajectory, passages, vectors, identity)

    return await at_once(store, writer, WRITERS)


def again(history: Any) -> Any:
    """The first episodes under other names."""
    for number, (one, _, vectors) in zip(range(SINGLE), make_episodes(history), strict=False):
        other = one.model_copy(update={"source_id": f"again {number}"})
        other = Trajectory.model_validate(other.model_dump(exclude={"id"}))
        yield other, passages_of(other), vectors


async def at_once(store: EpisodeStore, writer: Callable[[], Awaitable[None]], writers: int) -> float:
    await store.namespaces()  # connects
    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(writers):
            group.start_soon(writer)
    return time.perf_counter() - began


async def write_bare(collection: Any, episodes: list[Any]) -> float:
    """Stream the same objects; seconds."""

    async def stream() -> float:
        began = time.perf_counter()
        async with collection.batch.stream(concurrency=2) as batch:
            for trajectory, passages, vectors in episodes:
                for one in passages_sent(trajectory, passages, vectors, "bare"):
                    await batch.add_object(properties=one.properties, uuid=one.id, vector=one.vector)
        return time.perf_counter() - began

    return await bridge.write(stream)


async def hybrid(collection: Any, text: str, vector: Any) -> Any:
    """One query, fused by the server, with the same properties."""
    return await collection.query.hybrid(
        " ".join(searched_terms(text)),
        vector={schema.VECTOR: vector.tolist()},
        target_vector=schema.VECTOR,
        alpha=0.5,
        fusion_type=HybridFusion.RELATIVE_SCORE,
        query_properties=["terms"],
        limit=LIMIT,
        return_properties=["trajectory_id", "generation", "payload"],
    )


async def two(collection: Any, text: str, vector: Any) -> Any:
    """Both signals by themselves, with what a cosine and a BM25 score of each result need."""
    wanted = {"limit": LIMIT, "return_properties": ["trajectory_id", "generation", "payload"]}
    return await asyncio.gather(
        collection.query.near_vector(
            vector.tolist(), target_vector=schema.VECTOR, return_metadata=MetadataQuery(distance=True), **wanted
        ),
        collection.query.bm25(
            " ".join(searched_terms(text)),
            query_properties=["terms"],
            include_vector=[schema.VECTOR],
            return_metadata=MetadataQuery(score=True),
            **wanted,
        ),
    )


async def ask(
    asked: dict[str, Callable[[str, Any], Awaitable[Any]]], queries: list[tuple[str, Any]]
) -> dict[str, list[float]]:
    """Seconds of each query in each, in turns; the first five are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for number, (text, vector) in enumerate(queries):
        for name, one in asked.items():
            began = time.perf_counter()
            await one(text, vector)
            if number >= 5:
                seconds[name].append(time.perf_counter() - began)
    return seconds


@asynccontextmanager
async def bare_client(url: str, identity: EmbedderIdentity) -> AsyncIterator[Any]:
    """A collection of the store's schema for passages, and its tenant; to be used in the stores' event loop."""
    address = parse_address(url)
    client = new_client(address)

    async def create() -> Any:
        await client.connect()
        name = f"{address.prefix}Passages"
        await client.collections.create(name, **schema.passages(address, identity.model_dump_json()))
        return client.collections.use(name).with_tenant(tenant(NAMESPACE))

    try:
        yield await bridge.write(create)
    finally:
        await bridge.write(client.close)


def with_prefix(url: str, prefix: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}prefix={prefix}"


def rest(address: Address, path: str) -> str:
    return f"{'https' if address.secure else 'http'}://{address.host}:{address.port}/v1/{path}"


def clean(url: str, prefix: str) -> None:
    """Delete collections of an earlier run."""
    address = parse_address(url)
    for one in httpx.get(rest(address, "schema"), timeout=60).json()["classes"]:
        if one["class"].startswith(prefix):
            httpx.delete(rest(address, f"schema/{one['class']}"), timeout=300).raise_for_status()


def size(folder: Path | None) -> int:
    """Bytes of all files in a folder."""
    if folder is None:
        return 0
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())


def per_second(passages: int, seconds: float) -> dict[str, float]:
    return {"write_seconds": round(seconds, 1), "passages_per_second": round(passages / seconds)}


def history_module() -> ModuleType:
    path = HERE.parent / "recall_100k" / "run.py"
    spec = importlib.util.spec_from_file_location("recall_100k_run", path)
    if spec is None or spec.loader is None:
        sys.exit(f"{path} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
