"""How fast a distillation trains on this machine's CPU, and how much memory the whole process takes at most.

The demo's history is distilled as ``Memory.distil`` does it, but with a bounded number of tokens. Tokens are positions
that the model computed: a beginning that packed examples share counts once. Writes ``result.json``.
The last run trains beside a thread that ran one loop of torch and is idle since: its OpenMP workers count, and slow
training down (see ``models.in_own_thread``). A load above the number of cores at the start means that the figures say
little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio

from rag_tuned_memory import AsyncMemory
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.evaluation.stamp import code_hash, hash_of, machine, versions
from rag_tuned_memory.settings import Settings

HERE = Path(__file__).parent
SHOWN = ("tokens_per_second", "beside_idle_workers", "peak_memory_bytes", "load_before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=20_000, help="of the examples, before packing")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        measured = anyio.run(measure, Path(scratch) / "alone", given.runs, given.tokens)
        with ThreadPoolExecutor(1) as other:
            other.submit(torch_loop).result()
            beside = anyio.run(measure, Path(scratch) / "beside", 1, given.tokens)[0]["tokens_per_second"]
    speeds = [run["tokens_per_second"] for run in measured]
    median = statistics.median(speeds)
    result = {
        "tokens_per_second": {"median": median, "least": min(speeds), "most": max(speeds)},
        "beside_idle_workers": {"tokens_per_second": beside, "ratio": beside / median},
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
    print(json.dumps({key: result[key] for key in SHOWN}, indent=2))


def torch_loop() -> None:
    import torch

    torch.ones(2_000_000).mul(2)


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
