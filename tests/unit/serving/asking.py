"""Short forms for requests, and what it means that two answers are equal."""

from __future__ import annotations

from typing import Any

from rag_tuned_memory.serving.base import Generation, Message, Request

QUESTIONS = [
    "hello",
    "What was the cause of the incident?",
    "who",
    "How many incidents were there in March, and which error was the most frequent one?",
    "Is it " + "very " * 20 + "late?",
]
CONTEXT = Message("system", "The payment service failed at 12:30 because the disk was full. " * 12)


def ask(question: str, adapter: str | None = None, **settings: Any) -> Request:
    return Request((Message("user", question),), adapter=adapter, **{"max_new_tokens": 12, **settings})


def about_context(question: str, adapter: str | None = None, **settings: Any) -> Request:
    return Request((CONTEXT, Message("user", question)), adapter=adapter, **{"max_new_tokens": 12, **settings})


def assert_same(left: Generation, right: Generation, tolerance: float = 1e-3) -> None:
    """The same tokens, up to a place where two tokens are equally likely within ``tolerance`` nats."""
    assert (left.prompt_tokens, left.adapter) == (right.prompt_tokens, right.adapter)
    for a, b in zip(left.tokens, right.tokens, strict=False):
        assert abs(a.logprob - b.logprob) < tolerance
        if a.id != b.id:
            return
        assert abs(a.entropy - b.entropy) < tolerance
    assert (left.text, left.finish_reason) == (right.text, right.finish_reason)
