"""Vectors without a model: signed feature hashing of words and character trigrams.

It needs numpy only, gives the same vectors on every machine, and finds texts that share words or parts of words. It
knows nothing of meaning: use it for tests and on machines without torch, not to measure recall.

Method: Weinberger et al., Feature Hashing for Large Scale Multitask Learning, 2009 (https://arxiv.org/abs/0902.2206).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Literal

import anyio.to_thread
import numpy as np

from rag_tuned_memory.embedding.base import EmbedderIdentity, OnProgress, Vectors, checked, checked_texts
from rag_tuned_memory.errors import InvalidInput

_WORD = re.compile(r"\w+")
# A word has about as many trigrams as letters: together they shall not outweigh it.
_TRIGRAM_WEIGHT = 0.3


class HashingEmbedder:
    """An ``Embedder`` of ``dimension`` hashed features; a word counts 1, each trigram of it 0.3, either with a sign."""

    def __init__(self, dimension: int = 256) -> None:
        if dimension < 1:
            raise InvalidInput(f"dimension is {dimension}, must be 1 or more")
        self.identity = EmbedderIdentity(model="hashing", revision="1", dimension=dimension)

    async def embed(
        self,
        texts: Sequence[str],
        *,
        kind: Literal["passage", "query"] = "passage",
        on_progress: OnProgress | None = None,
    ) -> Vectors:
        """See ``Embedder``; passages and queries are embedded alike. Raises InvalidInput for what is no valid text."""
        texts = checked_texts(texts)
        vectors = await anyio.to_thread.run_sync(partial(_vectors, texts, self.identity.dimension))
        if on_progress and texts:
            on_progress(len(texts), len(texts))
        return checked(vectors, rows=len(texts), dimension=self.identity.dimension)


def _vectors(texts: Sequence[str], dimension: int) -> Vectors:
    vectors = np.zeros((len(texts), dimension), dtype=np.float32)
    for vector, text in zip(vectors, texts, strict=True):
        for feature, weight in _features(text):
            slot, sign = _hash(feature)
            vector[slot % dimension] += sign * weight
    # Features can cancel each other out, and a text may have none: it still needs a direction.
    vectors[~vectors.any(axis=1), 0] = 1.0
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _features(text: str) -> Iterator[tuple[str, float]]:
    for word in _WORD.findall(text.casefold()):
        yield word, 1.0
        marked = f"<{word}>"
        for start in range(len(marked) - 2):
            yield f"#{marked[start : start + 3]}", _TRIGRAM_WEIGHT


@lru_cache(maxsize=1 << 16)
def _hash(feature: str) -> tuple[int, int]:
    """A slot in [0, 2^32) and a sign, which makes collisions cancel out on average."""
    digest = hashlib.blake2b(feature.encode(), digest_size=5).digest()
    return int.from_bytes(digest[:4], "little"), 1 if digest[4] & 1 else -1
