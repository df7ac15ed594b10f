"""Replay: general instructions that the base model answers itself, so that the adapter keeps what the base could do.

Self-generated answers cost nothing to learn and hold the old distribution (SD-RA-IT, arXiv 2502.10596; the prompts are
in ``prompts/general.toml``).
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
from pydantic import BaseModel, TypeAdapter

from rag_tuned_memory.distil.dialogue import general_messages
from rag_tuned_memory.serving.base import InferenceBackend, Request

MAX_ANSWER_TOKENS = 56
_BATCH = 64


class Replay(BaseModel):
    """A general instruction and what the base model says to it."""

    question: str
    answer: str


_REPLAYS = TypeAdapter(list[Replay])


@cache
def general_prompts(split: Literal["train", "held_out"]) -> tuple[str, ...]:
    """The general instructions of one split."""
    table = tomllib.loads(files("rag_tuned_memory.distil").joinpath("prompts/general.toml").read_text("utf-8"))
    return tuple(table[split])


async def base_answers(
    backend: InferenceBackend,
    split: Literal["train", "held_out"],
    cache_folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Replay]:
    """The base model's greedy answers to one split.

    Of those to train with, the ones that did not finish by themselves are left out: they would teach never to stop.
    Answers are kept in ``cache_folder`` for the next run with the same base model and prompts.
    """
    prompts = general_prompts(split)
    key = hashlib.sha256(repr((backend.base_model, prompts, MAX_ANSWER_TOKENS)).encode()).hexdigest()[:16]
    path = cache_folder / f"replay-{split}-{key}.json"
    if await anyio.Path(path).exists():
        return _REPLAYS.validate_json(await anyio.Path(path).read_bytes())
    replays = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        requests = [Request(general_messages(prompt), max_new_tokens=MAX_ANSWER_TOKENS) for prompt in batch]
        for prompt, generation in zip(batch, await backend.generate(requests), strict=True):
            if generation.text.strip() and (generation.finish_reason == "stop" or split == "held_out"):
                replays.append(Replay(question=prompt, answer=generation.text.strip()))
        if on_progress:
            on_progress(min(start + _BATCH, len(prompts)), len(prompts))
    await anyio.to_thread.run_sync(_keep, path, replays)
    return replays


def _keep(path: Path, replays: list[Replay]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_bytes(_REPLAYS.dump_json(replays))
    temporary.replace(path)
