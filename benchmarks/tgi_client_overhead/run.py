"""What ``TgiBackend`` adds to the time of a request over plain HTTP.

Run it with ``python benchmarks/tgi_client_overhead/run.py [--model FOLDER]``; it writes ``result.json`` beside this
file. A server in a process of its own streams made-up tokens. Two clients take turns with the same request: ours, from
chat messages to a ``Generation``, and httpx, which posts the finished prompt and reads the stream's bytes to their end
without looking at them. The overhead is the difference of two turns that follow each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx

from rag_tuned_memory.evaluation.stamp import code_hash, machine, versions
from rag_tuned_memory.models import pull
from rag_tuned_memory.serving.base import Message, Request
from rag_tuned_memory.serving.tgi import TgiBackend

HERE = Path(__file__).parent
QUESTION = (
    Message("system", "You are a helpful assistant. " * 20),
    Message("user", "What caused the outage in March?"),
)
CASES = (
    ("64 tokens at 100 a second", 64, 10_000, 40),
    ("32 tokens at 500 a second", 32, 2_000, 200),
    ("16 tokens at once", 16, 0, 400),
    ("64 tokens at once", 64, 0, 400),
    ("256 tokens at once", 256, 0, 100),
)
"""Name, tokens, microseconds between tokens, turns."""


@contextmanager
def echo_server(model: Path) -> Iterator[str]:
    """Starts the server; gives its URL."""
    command = [sys.executable, str(HERE / "echo_server.py"), str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


async def turns(url: str, model: Path, tokens: int, pause: int, count: int) -> dict[str, Any]:
    """Figures of one case, in milliseconds."""
    # The pause rides on the seed, which is only sent with a temperature.
    request = Request(QUESTION, max_new_tokens=tokens, temperature=1.0, seed=pause)
    backend = TgiBackend(url, model)
    client = httpx.AsyncClient(trust_env=False, timeout=60)
    text = await backend._folder.text(QUESTION)
    parameters = {"max_new_tokens": tokens, "do_sample": True, "temperature": 1.0, "seed": pause, "details": True}
    body = {"inputs": text, "parameters": {**parameters, "return_full_text": False}, "stream": True}

    async def ours() -> float:
        began = time.perf_counter()
        (done,) = await backend.generate([request])
        took = time.perf_counter() - began
        assert len(done.tokens) == tokens
        return took * 1000

    async def raw() -> float:
        began = time.perf_counter()
        async with client.stream("POST", url + "/", json=body) as response:
            size = sum([len(piece) async for piece in response.aiter_raw()])
        took = time.perf_counter() - began
        assert size > 100 * tokens
        return took * 1000

    for _ in range(5):
        await ours()
        await raw()
    pairs, cpu = [], []
    for index in range(count):
        # Who goes first changes, so that neither always follows the other.
        if index % 2:
            second = await raw()
            first = await _with_cpu(ours, cpu)
        else:
            first = await _with_cpu(ours, cpu)
            second = await raw()
        pairs.append((first, second))
    await client.aclose()
    await backend.close()
    overhead = [first - second for first, second in pairs]
    return {
        "ours": _figures([first for first, _ in pairs]),
        "raw": _figures([second for _, second in pairs]),
        "overhead": _figures(overhead),
        "cpu_of_ours": round(statistics.median(cpu), 3),
        "turns": count,
    }


async def _with_cpu(function: Any, cpu: list[float]) -> float:
    began = time.process_time()
    took: float = await function()
    cpu.append((time.process_time() - began) * 1000)
    return took


def _figures(milliseconds: list[float]) -> dict[str, float]:
    ordered = sorted(milliseconds)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 3),
    }


async def measure(model: Path) -> dict[str, Any]:
    """All cases, one after the other."""
    with echo_server(model) as url:
        return {name: await turns(url, model, *case) for name, *case in CASES}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder, for its tokenizer and chat template")
    parser.add_argument("--output", type=Path, default=HERE / "result.json")
    given = parser.parse_args()
    model = given.model or pull("SmolLM2-135M-Instruct").folder
    load_before = os.getloadavg()[0]
    cases = anyio.run(measure, model)
    result = {
        "unit": "ms",
        "cases": cases,
        "load_average": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "stamp": {"code_sha256": code_hash(), "versions": versions(), "machine": machine()},
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    for name, case in cases.items():
        print(f"{name}: overhead {case['overhead']}, ours {case['ours']}, raw {case['raw']}, cpu {case['cpu_of_ours']}")


if __name__ == "__main__":
    main()
