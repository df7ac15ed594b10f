"""Eight adapters in one batch against one after another, and how long a switch of adapters takes, over HTTP.

python benchmarks/local_serving/run.py --model FOLDER [--output FILE]

The server is ``rtm serve-model`` as a process of its own, with eight random LoRAs of rank 8 on all linear layers. The
ways take turns within each repeat, and the best of the repeats counts, because other programs can only make a run
slower; each repeat is in the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import httpx

from rag_tuned_memory.evaluation.stamp import versions

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

ADAPTERS = 8
NEW_TOKENS = 32
REPEATS = 3
SWITCHES = 24


def prompt(number: int) -> str:
    """A prompt of the demo's kind."""
    return f"Incident {number}: the payment service failed because"


async def ask(client: httpx.AsyncClient, adapter: str | None, number: int, tokens: int = NEW_TOKENS) -> list[int]:
    """The greedy answer's token ids."""
    parameters = {"max_new_tokens": tokens, "details": True, "adapter_id": adapter}
    answer = await client.post("/generate", json={"inputs": prompt(number), "parameters": parameters})
    answer.raise_for_status()
    return [token["id"] for token in answer.json()["details"]["tokens"]]


async def together(client: httpx.AsyncClient, adapters: list[str | None]) -> tuple[float, list[list[int]]]:
    """Tokens a second of requests at once, and their answers."""
    answers: dict[int, list[int]] = {}

    async def one(index: int) -> None:
        answers[index] = await ask(client, adapters[index], index)

    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for index in range(len(adapters)):
            group.start_soon(one, index)
    return _rate(began, list(answers.values())), [answers[index] for index in range(len(adapters))]


async def in_turn(client: httpx.AsyncClient, adapters: list[str | None]) -> tuple[float, list[list[int]]]:
    """The same, one after another."""
    began = time.perf_counter()
    answers = [await ask(client, adapter, index) for index, adapter in enumerate(adapters)]
    return _rate(began, answers), answers


def _rate(began: float, answers: list[list[int]]) -> float:
    return sum(map(len, answers)) / (time.perf_counter() - began)


async def throughput(client: httpx.AsyncClient, names: list[str]) -> dict[str, Any]:
    """Rates of the three ways, and how far mixing changed answers."""
    base: list[str | None] = [None] * len(names)
    rows: list[dict[str, float]] = []
    await together(client, [*names])
    for _ in range(REPEATS):
        alone, expected = await in_turn(client, [*names])
        mixed, found = await together(client, [*names])
        rows.append({"one_after_another": alone, "mixed": mixed, "base_only": (await together(client, base))[0]})
    best = {way: max(row[way] for row in rows) for way in rows[0]}
    same = sum(a == b for one, other in zip(expected, found, strict=True) for a, b in zip(one, other, strict=False))
    return {
        "requests": len(names),
        "new_tokens": NEW_TOKENS,
        "tokens_per_second": best,
        "mixed_over_one_after_another": best["mixed"] / best["one_after_another"],
        "ratio_of_each_repeat": [row["mixed"] / row["one_after_another"] for row in rows],
        "same_tokens": same / sum(map(len, expected)),
        "repeats": rows,
    }


async def switching(client: httpx.AsyncClient, names: list[str]) -> dict[str, Any]:
    """Milliseconds of a one-token answer with the adapter of the request before, and with another one."""
    times: dict[str, list[float]] = {"same": [], "other": []}
    for number in range(SWITCHES):
        for way, name in (("same", names[number % 8]), ("same", names[number % 8]), ("other", names[(number + 1) % 8])):
            began = time.perf_counter()
            await ask(client, name, 0, tokens=1)
            times[way].append((time.perf_counter() - began) * 1000)
    same, other = (sorted(values[2:]) for values in (times["same"][1::2], times["other"]))
    return {
        "switches": len(other),
        "milliseconds_same_adapter": statistics.median(same),
        "milliseconds_other_adapter": statistics.median(other),
        "milliseconds_of_a_switch": statistics.median(other) - statistics.median(same),
        "worst_of_a_switch": other[-1] - statistics.median(same),
    }


async def loading(client: httpx.AsyncClient, folder: Path) -> dict[str, float]:
    """Milliseconds to load an adapter into the running server, for its first token, and to let go of it."""
    steps: dict[str, list[float]] = {"load": [], "first_token": [], "unload": []}
    for number in range(5):
        name = f"new-{number}"
        for step, path, body in (
            ("load", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}),
            (
                "first_token",
                "/generate",
                {"inputs": prompt(0), "parameters": {"max_new_tokens": 1, "adapter_id": name}},
            ),
            ("unload", "/v1/unload_lora_adapter", {"lora_name": name}),
        ):
            began = time.perf_counter()
            (await client.post(path, json=body)).raise_for_status()
            steps[step].append((time.perf_counter() - began) * 1000)
    return {f"milliseconds_{step}": statistics.median(times) for step, times in steps.items()}


async def measure(url: str, adapters: dict[str, Path]) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        result = {"throughput": await throughput(client, list(adapters))}
        result["switch"] = await switching(client, list(adapters))
        result["at_run_time"] = await loading(client, next(iter(adapters.values())))
        return result


def main() -> None:
    from model_server import model_server
    from tiny_model import build_random_adapter

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model, e.g. what 'rtm pull' printed")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        adapters = {
            f"ad{seed}": build_random_adapter(options.model, Path(temporary, f"ad{seed}"), seed=seed, rank=8)
            for seed in range(ADAPTERS)
        }
        with model_server(options.model, adapters, dtype=options.dtype) as server:
            result = anyio.run(measure, server.url, adapters)
    result |= {"dtype": options.dtype, "threads": 1, "stamp": {"versions": versions()}}
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
