"""Speed of the local backend, and how far an adapter's log-probabilities move with dtype and batching.

python benchmarks/local_backend/run.py --model FOLDER [--adapter FOLDER] [--part NAME] [--output FILE]

Figures of one part come from one run and can be compared; each part rewrites its own entry of the output. Rates are the
best of the repeats, because other programs can only make a run slower.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from rag_tuned_memory.serving.base import Message, Request
from rag_tuned_memory.serving.local import LocalBackend

NEW_TOKENS = 17
REPEATS = 3
TOPICS = ["a lighthouse", "two sisters", "a lost dog", "the moon", "an old tree", "a train", "rain", "a violin"]
FACTS = [
    ("What caused the outage of the payment service?", "The disk of the payment service was full."),
    ("Who repaired the search index in March?", "Ana rebuilt the search index from the last snapshot."),
    ("Which error was the most frequent one?", "Connection timeouts were the most frequent error."),
    ("How long did the incident last?", "It lasted 47 minutes."),
    ("What was the fix?", "They restarted the queue and added two workers."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Was it seen before?", "Yes, twice: in January and in May."),
    ("Which tool was used?", "The tool restart_service was used."),
]


def random_adapter(model: Path, folder: Path, seed: int) -> Path:
    """A LoRA of rank 16 on all linear layers whose effect is of the size of a trained one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tuned = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.03)
    tuned.save_pretrained(folder)
    return folder


async def seconds(backend: LocalBackend, requests: Sequence[Request]) -> tuple[float, int]:
    """Wall time of one call, and the tokens that it generated."""
    began = time.perf_counter()
    answers = await backend.generate(requests)
    return time.perf_counter() - began, sum(len(answer.tokens) for answer in answers)


def stories(rows: int, adapters: Sequence[str | None], new_tokens: int) -> list[Request]:
    """Prompts whose answers are long; row i has the adapter i modulo their number."""
    return [
        Request(
            (Message("user", f"Write a long story number {i} about {TOPICS[i % len(TOPICS)]}."),),
            adapter=adapters[i % len(adapters)],
            max_new_tokens=new_tokens,
        )
        for i in range(rows)
    ]


async def decoding(backend: LocalBackend) -> list[dict[str, Any]]:
    """Tokens a second after the first token, by rows and adapters; the cases take turns within each repeat."""
    cases = {"base": [None], "one adapter": ["a"], "base and adapter": [None, "a"], "two adapters": ["a", "b"]}
    shapes = [(rows, name) for rows in (1, 8, 16) for name in cases if rows == 16 or len(cases[name]) == 1]
    rates: dict[tuple[int, str], list[float]] = {shape: [] for shape in shapes}
    for repeat in range(REPEATS + 1):
        for rows, name in shapes:
            first, _ = await seconds(backend, stories(rows, cases[name], 1))
            whole, tokens = await seconds(backend, stories(rows, cases[name], NEW_TOKENS))
            if repeat:  # the first round warms up
                rates[rows, name].append((tokens - rows) / (whole - first))
    return [
        {"rows": rows, "adapters": name, "tokens_per_second": round(max(values), 1)}
        for (rows, name), values in rates.items()
    ]


async def prefill(backend: LocalBackend) -> list[dict[str, Any]]:
    """Prompt tokens a second, 4 prompts of about 500 tokens; base and adapter take turns."""
    rates: dict[str | None, list[float]] = {None: [], "a": []}
    for repeat in range(REPEATS + 1):
        for name, values in rates.items():
            text = f"Repeat {repeat}. " + "The payment service failed because the disk was full. " * 45
            requests = [Request((Message("user", f"{i} {text}"),), adapter=name, max_new_tokens=1) for i in range(4)]
            began = time.perf_counter()
            answers = await backend.generate(requests)
            values.append(sum(a.prompt_tokens for a in answers) / (time.perf_counter() - began))
    return [{"adapter": name is not None, "tokens_per_second": round(max(values), 1)} for name, values in rates.items()]


async def prefix_sharing(backend: LocalBackend) -> dict[str, Any]:
    """Eight questions about one context of about 3,000 tokens, with the context computed once or for each."""
    context = Message("system", " ".join(f"On day {d} incident {d * 7} was fixed by team {d % 9}." for d in range(210)))

    def questions(shared: int) -> list[Request]:
        return [
            Request((context, Message("user", question)), max_new_tokens=16, shared_prefix=shared)
            for question, _ in FACTS
        ]

    began = time.perf_counter()
    plain = await backend.generate(questions(0))
    without = time.perf_counter() - began
    began = time.perf_counter()
    sharing = await backend.generate(questions(1))
    cold = time.perf_counter() - began
    began = time.perf_counter()
    await backend.generate(questions(1))
    warm = time.perf_counter() - began
    return {
        "prompt_tokens": plain[0].prompt_tokens,
        "questions": len(FACTS),
        "seconds_without": round(without, 2),
        "seconds_first_call": round(cold, 2),
        "seconds_next_call": round(warm, 2),
        "speedup_first_call": round(without / cold, 1),
        "speedup_next_call": round(without / warm, 1),
        "equal_texts": sum(a.text == b.text for a, b in zip(plain, sharing, strict=True)),
    }


async def dtypes(model: Path) -> list[dict[str, Any]]:
    """The base model in both dtypes: prompts of about 500 tokens, and decoding 8 rows after the first token."""
    rates: dict[str, dict[str, list[float]]] = {}
    backends = {name: LocalBackend(model, dtype=name) for name in ("float32", "bfloat16")}
    for _ in range(REPEATS):
        for name, backend in backends.items():
            values = rates.setdefault(name, {"prefill": [], "decoding": []})
            text = "The disk was full. " * 100
            prompts = [Request((Message("user", f"{i} {text}"),), max_new_tokens=1) for i in range(4)]
            began = time.perf_counter()
            answers = await backend.generate(prompts)
            values["prefill"].append(sum(a.prompt_tokens for a in answers) / (time.perf_counter() - began))
            first, _ = await seconds(backend, stories(8, [None], 1))
            whole, tokens = await seconds(backend, stories(8, [None], NEW_TOKENS))
            values["decoding"].append((tokens - 8) / (whole - first))
    for backend in backends.values():
        await backend.close()
    return [
        {"dtype": name, **{f"{what}_tokens_per_second": round(max(found), 1) for what, found in values.items()}}
        for name, values in rates.items()
    ]


async def drift(model: Path, adapters: dict[str, Path]) -> dict[str, Any]:
    """Mean absolute differences of log-probabilities, nats a token: what a canary's tolerance has to cover."""
    scores: dict[tuple[str, str | None], list[tuple[float, ...]]] = {}
    batched: dict[str | None, list[tuple[float, ...]]] = {}
    for dtype in ("float32", "bfloat16"):
        backend = LocalBackend(model, dtype=dtype)
        for name, path in adapters.items():
            await backend.load_adapter(name, path)
        for name in (None, *adapters):
            scores[dtype, name] = [
                (await backend.score(Request((Message("user", question),), adapter=name), [answer]))[0]
                for question, answer in FACTS
            ]
            if dtype == "bfloat16":
                # Eight rows of unequal length; the row in question is padded and computed with the others.
                batched[name] = [
                    (
                        await backend.score(
                            Request((Message("user", question),), adapter=name),
                            [answer, *(other for _, other in FACTS)],
                        )
                    )[0]
                    for question, answer in FACTS
                ]
        await backend.close()

    def difference(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> dict[str, float]:
        by_token = [abs(a - b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)]
        by_canary = [statistics.mean(map(lambda a, b: abs(a - b), x, y)) for x, y in zip(left, right, strict=True)]
        return {"mean": round(statistics.mean(by_token), 4), "worst_canary": round(max(by_canary), 4)}

    first, *others = adapters
    return {
        "bfloat16 against float32": difference(scores["bfloat16", first], scores["float32", first]),
        "one row against nine (bfloat16)": difference(scores["bfloat16", first], batched[first]),
        "adapter against base (float32)": difference(scores["float32", first], scores["float32", None]),
        "adapter against another (float32)": difference(scores["float32", first], scores["float32", others[0]]),
    }


PARTS = {"decoding": decoding, "prefill": prefill, "prefix_sharing": prefix_sharing}


async def measure(model: Path, adapter: Path | None, parts: Sequence[str], output: anyio.Path) -> None:
    import torch

    result = json.loads(await output.read_text()) if await output.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        adapters = {
            "a": adapter or random_adapter(model, Path(temporary, "a"), 1),
            "b": random_adapter(model, Path(temporary, "b"), 2),
        }
        backend = LocalBackend(model)
        for name, path in adapters.items():
            await backend.load_adapter(name, path)
        result |= {
            "model": backend.base_model,
            "adapter": "trained" if adapter else "random",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        for part in parts:
            if part == "drift":
                result[part] = await drift(model, adapters)
            else:
                result[part] = await (dtypes(model) if part == "dtypes" else PARTS[part](backend))
            print(part, json.dumps(result[part], indent=1), flush=True)
            await output.write_text(json.dumps(result, indent=1) + "\n")
        await backend.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model, e.g. what 'rtm pull' printed")
    parser.add_argument("--adapter", type=Path, help="folder of a trained adapter; random weights by default")
    parser.add_argument("--part", action="append", choices=[*PARTS, "dtypes", "drift"], help="all by default")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    parts = options.part or [*PARTS, "dtypes", "drift"]
    anyio.run(measure, options.model, options.adapter, parts, anyio.Path(options.output))


if __name__ == "__main__":
    main()
