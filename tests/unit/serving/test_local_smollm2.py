"""What only a real model shows: rounding in bfloat16 at its depth and vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from asking import CONTEXT, about_context, ask

from rag_tuned_memory.serving.base import Message, Request
from rag_tuned_memory.serving.local import LocalBackend

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_smollm2_answers_batches_and_shares_prefixes(
    models_cache: Path, make_backend: Callable[..., LocalBackend], dtype: str
) -> None:
    from rag_tuned_memory.models import locate

    backend = make_backend(locate("SmolLM2-135M-Instruct", models_cache), dtype=dtype)
    (answer,) = await backend.generate([ask("What is the capital of France?", max_new_tokens=24)])
    assert "Paris" in answer.text
    questions = ["When did it fail?", "Why?", "What failed, and what is the reason that is given for it?"]
    for shared in (0, 1):
        requests = [about_context(question, shared_prefix=shared) for question in questions]
        found = await backend.generate(requests)
        if not shared:
            expected = found
    assert backend._loaded()._prefixes
    for left, right in zip(found, expected, strict=True):
        assert left.tokens[0].logprob == pytest.approx(
            right.tokens[0].logprob, abs=0.3 if dtype == "bfloat16" else 1e-3
        )
        if dtype == "float32":
            assert left.text == right.text
    plain = Request((CONTEXT, Message("user", "Why?")))
    sharing = Request(plain.messages, shared_prefix=1)
    text = "The payment service failed because the disk was full."
    (one,), (other,) = await backend.score(plain, [text]), await backend.score(sharing, [text])
    mean = sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
    assert mean < (0.15 if dtype == "bfloat16" else 1e-3)
