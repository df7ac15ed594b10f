"""How fast a distillation trains on this machine's CPU, and how much memory the whole process takes at most.

The demo's history is distilled as ``Memory.distil`` does it, but with a bounded number of tokens. Tokens are positions
that the model computed: a beginning that packed examples share counts once. Writes ``result.json``.
A load above the number of cores at the start means that the figures say little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import anyio

from rag_tuned_memory import AsyncMemory
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.evaluation.stamp import code_hash, hash_of, machine, versions
from rag_tuned_memory.settings import Settings

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=20_000, help="of the examples, before packing")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        measured = anyio.run(measure, Path(scratch), given.runs, given.tokens)
    speeds = [run["tokens_per_second"] for run in measured]
    result = {
        "tokens_per_second": {"median": statistics.median(speeds), "least": min(speeds), "most": max(speeds)},
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in measured),
        "runs": measured,
        "load_before": round(load, 2),
        "stamp": {
            "model": Settings().model,
            "data_sha256": hash_of(sorted(one.content_hash for one in incidents("speed"))),
            "code_sha256": code_hash(),
            "versions": versions(),
            "machine": machine(),
        },
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("tokens_per_second", "peak_memory_bytes", "load_before")}, indent=2))


async def measure(home: Path, runs: int, tokens: int) -> list[dict[str, Any]]:
    measured = []
    async with AsyncMemory("speed", settings=Settings(home=home, store=f"sqlite:///{home / 'memory.db'}")) as memory:
        await memory.record_many(incidents("speed"))
        for _ in range(runs):
            report = await memory.distil(Recipe(max_tokens=tokens))
            train = report.manifest.train
            measured.append(train.model_dump(mode="json"))
            print(f"{train.tokens:,} tokens in {train.seconds:.1f} s: {train.tokens_per_second:,.0f} tokens/s")
    return measured


if __name__ == "__main__":
    main()
