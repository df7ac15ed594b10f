"""Texts per CPU second of all-MiniLM-L6-v2 by batch size, and what sorting by length saves.

Run it with ``python benchmarks/embedding/run.py [--cache build] [--texts 192] [--rounds 3]``; it writes
``result.json`` beside this file. Texts are dialogue-like, of 4 to 120 words, seeded. The configurations take turns and
are timed in CPU seconds of one torch thread, so that a busy machine slows all of them alike: read the ratios to batch
size 1, not the rates. "default" also bounds a batch's characters.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from pathlib import Path

import anyio
import numpy as np
import torch

from rag_tuned_memory.embedding import HashingEmbedder, SentenceEmbedder
from rag_tuned_memory.models import pull

BATCH_SIZES = (1, 8, 16, 32, 64, 128)
UNBOUND = 10**9


def texts(count: int) -> list[str]:
    chance = random.Random(0)
    words = ["the", "of", "to", "and", "a", "is", "in", "on", "at", "server", "disk", "invoice", "refund", "timeout"]
    return [" ".join(chance.choices(words, k=min(120, 4 + int(chance.expovariate(1 / 20))))) for _ in range(count)]


async def unsorted(embedder: SentenceEmbedder, rows: list[str]) -> np.ndarray:
    """Batches in the order given, which pads short texts to the longest beside them."""
    size = embedder.batch_size
    return np.concatenate([await embedder.embed(rows[i : i + size]) for i in range(0, len(rows), size)])


async def measure(cache: Path, count: int, rounds: int) -> dict[str, object]:
    rows, folder = texts(count), pull("all-MiniLM-L6-v2", cache=cache)
    arms = {
        f"batch {size}": SentenceEmbedder(folder, batch_size=size, batch_characters=UNBOUND).embed
        for size in BATCH_SIZES
    }
    arms["default"] = SentenceEmbedder(folder).embed
    plain = SentenceEmbedder(folder, batch_characters=UNBOUND)
    arms["batch 64, not sorted by length"] = lambda given: unsorted(plain, given)
    arms["hashing"] = HashingEmbedder().embed
    torch.set_num_threads(1)
    for arm in arms.values():
        await arm(rows[:2])
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            start = time.process_time()
            await arm(rows)
            rates[name].append(count / (time.process_time() - start))
    base = statistics.median(rates["batch 1"])
    table = {
        name: {
            "texts_per_cpu_second": [round(rate, 1) for rate in found],
            "ratio_to_batch_1": round(statistics.median(found) / base, 2),
        }
        for name, found in rates.items()
    }
    machine = {"cores": os.cpu_count(), "torch_threads": torch.get_num_threads(), "processor": platform.machine()}
    return {"texts": count, "rounds": rounds, "machine": machine, "torch": torch.__version__, "arms": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("build"))
    parser.add_argument("--texts", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results = anyio.run(measure, options.cache, options.texts, options.rounds)
    text = json.dumps(results, indent=2)
    Path(__file__).with_name("result.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
