"""Counting tokens with a backend's tokenizer where recall assembles a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio.from_thread

from rag_tuned_memory.serving.base import InferenceBackend


def token_counter(backend: InferenceBackend) -> Callable[[Sequence[str]], list[int]]:
    """A blocking counter for ``Recall.recall(count_tokens=…)``, which calls it from a worker thread of the loop."""
    return lambda texts: anyio.from_thread.run(backend.count_tokens, texts)
