"""Whether a vLLM server answers with an adapter as the local backend does, question by question.

The questions are the held-out ones that the gate asked of this adapter, from its report. Start vLLM on the base model's
folder with ``--enable-lora`` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, where it sees the registry by the same path.
Writes ``rows-<label>.jsonl`` as it goes, so that a stopped run goes on where it was, and at its end
``result-<label>.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from rag_tuned_memory.adapters import AdapterRegistry, Manifest
from rag_tuned_memory.adapters.report import REPORT_JSON
from rag_tuned_memory.distil.dialogue import memory_messages
from rag_tuned_memory.distil.evaluate import ANSWER_TOKENS
from rag_tuned_memory.distil.facts import is_correct
from rag_tuned_memory.distil.phrasing import is_abstention
from rag_tuned_memory.evaluation.stamp import code_hash, hash_of, machine, versions
from rag_tuned_memory.models import locate
from rag_tuned_memory.serving.base import Fingerprint, Generation, InferenceBackend, Request
from rag_tuned_memory.serving.fingerprint import lead, make_fingerprint, messages_of
from rag_tuned_memory.serving.local import LocalBackend
from rag_tuned_memory.serving.vllm import VllmBackend
from rag_tuned_memory.settings import Settings

HERE = Path(__file__).parent
BATCH = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the vLLM server")
    parser.add_argument("--registry", type=Path, default=Settings().adapters_dir, help="folder of the adapter registry")
    parser.add_argument("--adapter", help="its name, such as demo-v1; by default the newest that the gate accepted")
    parser.add_argument(
        "--model", default=Settings().model, help="the base model: a name that rtm pull knows, or a folder"
    )
    parser.add_argument("--dtype", default="float32", help="of the local backend: float32 or bfloat16")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--concurrent", type=int, default=4, help="requests at a time; a GPU takes 64")
    parser.add_argument("--label", help="in the names of the results; by default the dtype")
    given = parser.parse_args()
    result = anyio.run(measure, given, HERE / f"rows-{given.label or given.dtype}.jsonl")
    text = json.dumps(result, indent=2)
    (HERE / f"result-{given.label or given.dtype}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


async def measure(given: argparse.Namespace, file: Path) -> dict[str, Any]:
    registry, model = AdapterRegistry(given.registry), locate(given.model, Settings().cache)
    manifest = choose(registry, given.adapter)
    path = registry.path(manifest.name)
    asked = held_out(registry.files_of(manifest.name), given.questions)
    todo = [(row, manifest.name) for row in asked] + [(row, None) for row in asked[::5]]
    rows = read_rows(file)
    done = {(row["question"], row["adapter"]) for row in rows}
    local = LocalBackend(model, dtype=given.dtype)
    remote = VllmBackend(given.url, model, max_concurrent=given.concurrent, timeout=600)
    try:
        await local.load_adapter(manifest.name, path, manifest.fingerprint)
        fingerprint = await with_greedy(local, manifest)
        began = time.monotonic()
        await remote.load_adapter(manifest.name, path, fingerprint)
        loaded = time.monotonic() - began
        left = [one for one in todo if (one[0]["question"], one[1]) not in done]
        for start in range(0, len(left), BATCH):
            rows += await ask_both(local, remote, left[start : start + BATCH])
            write_rows(file, rows)
            print(f"{len(rows)} of {len(todo)} asked", flush=True)
    finally:
        await close(remote, manifest.name)
        await local.close()
    tuned, base = [row for row in rows if row["adapter"]], [row for row in rows if not row["adapter"]]
    return {
        "adapter": manifest.name,
        "questions": len(tuned),
        "same_text": share(row["same_text"] for row in tuned),
        "same_tokens": share(row["same_tokens"] for row in tuned),
        "right_locally": share(row["right_local"] for row in tuned),
        "right_on_vllm": share(row["right_vllm"] for row in tuned),
        "base_questions": len(base),
        "base_same_text": share(row["same_text"] for row in base),
        "logprob_difference": spread([value for row in tuned for value in row["logprob_differences"]]),
        "entropy_local_minus_vllm": spread([row["entropy_local"] - row["entropy_vllm"] for row in tuned]),
        "seconds_to_load_and_prove": round(loaded, 2),
        "proven_by": "manifest" if fingerprint is manifest.fingerprint else "greedy answers of the local backend",
        "keeps_base_apart": remote.keeps_base_apart,
        "requests_at_a_time_on_vllm": given.concurrent,
        "tokens_per_second": {side: rate(tuned, side) for side in ("local", "vllm")},
        "stamp": {
            "base": manifest.base_revision,
            "local_dtype": given.dtype,
            "dataset_sha256": manifest.dataset_sha256,
            "questions_sha256": hash_of(row["question"] for row in rows),
            "code_sha256": code_hash(),
            "versions": versions(),
            "machine": machine(),
        },
    }


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


async def ask_both(
    local: LocalBackend, remote: VllmBackend, asked: Sequence[tuple[dict[str, Any], str | None]]
) -> list[dict[str, Any]]:
    requests = [Request(memory_messages(row["question"]), adapter, ANSWER_TOKENS) for row, adapter in asked]
    ours, ours_seconds = await timed(local, requests)
    theirs, theirs_seconds = await timed(remote, requests)
    seconds = {"seconds_local": ours_seconds / len(asked), "seconds_vllm": theirs_seconds / len(asked)}
    return [compared(row, *pair) | seconds for (row, _), *pair in zip(asked, ours, theirs, strict=True)]


def choose(registry: AdapterRegistry, name: str | None) -> Manifest:
    if name:
        return registry.get(name)
    accepted = [one for one in registry.list() if one.decision.accepted]
    if not accepted:
        sys.exit("no adapter of this registry was accepted: make demo makes one in build/demo/adapters")
    return max(accepted, key=lambda one: one.created_at)


def held_out(folder: Path, count: int) -> list[dict[str, Any]]:
    """``count`` of the gate's questions about the memory, evenly from all kinds, with the right answers."""
    rows = [row for row in json.loads((folder / REPORT_JSON).read_text("utf-8"))["rows"] if row["kind"] != "general"]
    return [rows[index * len(rows) // count] for index in range(count)] if len(rows) > count else rows


async def with_greedy(local: LocalBackend, manifest: Manifest) -> Fingerprint:
    """The manifest's fingerprint, or where that is of a version without greedy answers, one that has them."""
    if lead(manifest.fingerprint) > 0:
        return manifest.fingerprint
    prompts = [(messages_of(canary), canary.answer) for canary in manifest.fingerprint.canaries]
    return await make_fingerprint(local, manifest.name, prompts)


async def timed(backend: InferenceBackend, requests: Sequence[Request]) -> tuple[list[Generation], float]:
    began = time.monotonic()
    answers = await backend.generate(requests)
    return answers, time.monotonic() - began


async def close(remote: VllmBackend, name: str) -> None:
    if name in await remote.adapters():
        await remote.unload_adapter(name)
    await remote.close()


def compared(row: dict[str, Any], local: Generation, vllm: Generation) -> dict[str, Any]:
    pairs = list(zip(local.tokens, vllm.tokens, strict=False))
    apart = next((index for index, (one, other) in enumerate(pairs) if one.id != other.id), len(pairs))
    parted = None
    if apart < len(pairs):
        parted = {"token": apart, "logprob_local": pairs[apart][0].logprob, "logprob_vllm": pairs[apart][1].logprob}
    return {
        "adapter": local.adapter,
        "kind": row["kind"],
        "question": row["question"],
        "gold": row["gold"],
        "local": local.text,
        "vllm": vllm.text,
        "same_text": local.text == vllm.text,
        "same_tokens": [token.id for token in local.tokens] == [token.id for token in vllm.tokens],
        "right_local": right(row, local.text),
        "right_vllm": right(row, vllm.text),
        "parted": parted,
        "logprob_differences": [round(abs(one.logprob - other.logprob), 5) for one, other in pairs[:apart]],
        "tokens_local": len(local.tokens),
        "tokens_vllm": len(vllm.tokens),
        "entropy_local": round(local.entropy, 5),
        "entropy_vllm": round(vllm.entropy, 5),
    }


def right(row: dict[str, Any], text: str) -> bool:
    return is_abstention(text) if row["kind"] == "unknown" else is_correct(text, row["gold"])


def share(values: Any) -> float:
    return round(statistics.mean(map(float, values)), 4)


def spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "mean": round(statistics.mean(ordered), 5),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 5),
        "max": round(ordered[-1], 5),
    }


def rate(rows: Sequence[dict[str, Any]], side: str) -> float:
    return round(sum(row[f"tokens_{side}"] for row in rows) / sum(row[f"seconds_{side}"] for row in rows), 1)


if __name__ == "__main__":
    sys.exit(main())
