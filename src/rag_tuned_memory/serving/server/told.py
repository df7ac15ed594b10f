"""How answers look: TGI's native JSON and OpenAI's, from steps."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from rag_tuned_memory.serving.local.asked import Candidate, Finish, Step
from rag_tuned_memory.serving.server.inference import Answered

Json = dict[str, Any]

_CREATED_BY = "rag-tuned-memory-local"
"""The ``system_fingerprint`` of OpenAI answers."""


def token(one: Candidate) -> Json:
    """A token of a native answer."""
    return {"id": one.id, "text": one.text, "logprob": _finite(one.logprob), "special": one.special}


def _finite(logprob: float) -> float | None:
    """JSON has no infinity: what cannot come at all has no log-probability."""
    return logprob if math.isfinite(logprob) else None


def details(answer: Answered, token_texts: Sequence[str]) -> Json:
    """The ``details`` of a native answer; ``token_texts`` are of the prompt's tokens, where they are told."""
    ids = answer.checked.request.ids
    prefill = zip(ids, token_texts, [None, *(answer.prefill or ())], strict=True) if token_texts else ()
    told: Json = {
        "finish_reason": answer.finish,
        "generated_tokens": len(answer.steps),
        "seed": answer.checked.seed,
        "prefill": [{"id": one, "text": text, "logprob": value} for one, text, value in prefill],
        "tokens": [token(step) for step in answer.steps],
    }
    if answer.checked.request.top:
        told["top_tokens"] = [[token(one) for one in step.top] for step in answer.steps]
    return told


def timing_headers(answers: Sequence[Answered]) -> dict[str, str]:
    """The router's headers, over all answers of a request. The time in the queue is part of the inference."""
    total = max(answer.ended - answer.began for answer in answers)
    validation = max(answer.validated - answer.began for answer in answers)
    tokens = sum(len(answer.steps) for answer in answers)
    figures = {
        "x-total-time": total,
        "x-validation-time": validation,
        "x-queue-time": 0.0,
        "x-inference-time": total - validation,
        "x-time-per-token": (total - validation) / tokens,
    }
    return {
        "x-compute-type": "local",
        "x-compute-time": f"{total:.9f}",
        "x-compute-characters": str(sum(len(answer.prompt.text) for answer in answers)),
        **{name: str(int(seconds * 1000)) for name, seconds in figures.items()},
        "x-prompt-tokens": str(sum(len(answer.checked.request.ids) for answer in answers)),
        "x-generated-tokens": str(tokens),
    }


def finish_reason(finish: Finish) -> str:
    """OpenAI's word for the end token; the other two are TGI's own."""
    return "stop" if finish == "eos_token" else finish


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """Token counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def openai_head(kind: str, model: str) -> Json:
    """What every OpenAI answer and chunk begins with."""
    return {
        "object": kind,
        "id": "",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": _CREATED_BY,
    }


def chat_logprobs(steps: Sequence[Step]) -> Json:
    """The log-probabilities of a chat answer, or of a chunk."""
    return {
        "content": [
            {
                "token": step.text,
                "logprob": _finite(step.logprob),
                "top_logprobs": [{"token": one.text, "logprob": _finite(one.logprob)} for one in step.top],
            }
            for step in steps
        ]
    }
