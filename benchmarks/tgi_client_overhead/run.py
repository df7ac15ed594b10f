"""What ``TgiBackend`` adds to the time of a request over plain HTTP.

Run it with ``python benchmarks/tgi_client_overhead/run.py [--model FOLDER]``; it writes ``result.json`` beside this
file. A server in a process of its own streams made-up tokens. Three clients take turns with the same request: ours,
from chat messages to a ``Generation``; httpx, which posts the finished prompt and reads the stream's bytes to their end
without looking at them; and huggingface_hub's, from the finished prompt to the last event. The server's own time, from
the request's arrival to the last token, is taken off each: what is left is the client's and the network's. The overhead
is what ours leaves beyond what httpx leaves in the turn beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
from huggingface_hub import AsyncInferenceClient

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
    ("64 tokens at 100 a second", 64, 10_000, 30),
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
    hub = AsyncInferenceClient(base_url=url, api_key="none")
    text = await backend._folder.text(QUESTION)
    parameters = {"max_new_tokens": tokens, "do_sample": True, "temperature": 1.0, "seed": pause, "details": True}
    body = {"inputs": text, "parameters": {**parameters, "return_full_text": False}, "stream": True}

    async def ours() -> None:
        (done,) = await backend.generate([request])
        assert len(done.tokens) == tokens

    async def raw() -> None:
        async with client.stream("POST", url + "/", json=body) as response:
            assert sum([len(piece) async for piece in response.aiter_raw()]) > 100 * tokens

    async def of_hub() -> None:
        stream = await hub.text_generation(text, stream=True, return_full_text=False, **parameters)
        assert len([event async for event in stream]) == tokens

    async def left(call: Callable[[], Awaitable[None]]) -> float:
        began = time.perf_counter()
        await call()
        took = (time.perf_counter() - began) * 1000
        return took - float((await client.get(url + "/last")).text)

    for _ in range(5):
        await ours()
        await raw()
        await of_hub()
    times: dict[str, list[float]] = {"ours": [], "httpx": [], "hub": []}
    calls = [("ours", ours), ("httpx", raw), ("hub", of_hub)]
    for index in range(count):
        # Who goes first changes, so that none always follows the same one.
        for name, call in calls[index % 3 :] + calls[: index % 3]:
            times[name].append(await left(call))
    await client.aclose()
    await hub.close()
    await backend.close()
    return {
        **{name: _figures(taken) for name, taken in times.items()},
        "overhead": _figures([one - other for one, other in zip(times["ours"], times["httpx"], strict=True)]),
        "turns": count,
    }


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
    parser.add_argument(
        "--model", default="SmolLM2-135M-Instruct", help="whose tokenizer and template: a name or folder"
    )
    parser.add_argument("--output", type=Path, default=HERE / "result.json")
    given = parser.parse_args()
    model = pull(given.model, cache=Path(os.environ.get("RTM_CACHE") or "build"))
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
        print(f"{name}: overhead {case['overhead']}, ours {case['ours']}, httpx {case['httpx']}, hub {case['hub']}")


if __name__ == "__main__":
    main()
