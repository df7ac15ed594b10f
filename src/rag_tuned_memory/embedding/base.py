"""What turns text into vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from rag_tuned_memory.errors import InvalidInput, InvalidVector

Vectors = NDArray[np.float32]
"""Shape ``(texts, dimension)``, float32, each row of length 1."""

OnProgress = Callable[[int, int], None]
"""Called with the texts done and in all."""


class EmbedderIdentity(BaseModel):
    """What must be equal for two vectors to be comparable. It is stored with the vectors."""

    model_config = ConfigDict(frozen=True)

    model: str
    revision: str
    """SHA-256 of the weights, or another name of exactly these weights."""
    dimension: int
    prefix: str = ""
    """What is put before a passage's text; queries may have another prefix of the same model's convention."""


class Embedder(Protocol):
    """Makes vectors of texts. Implementations run heavy work in worker threads and never block the event loop."""

    @property
    def identity(self) -> EmbedderIdentity: ...

    async def embed(self, texts: Sequence[str], *, kind: Literal["passage", "query"] = "passage") -> Vectors:
        """Vectors of ``texts``: shape ``(len(texts), identity.dimension)``, float32, unit length."""
        ...


def checked(vectors: Any, *, rows: int, dimension: int) -> Vectors:
    """``vectors`` as float32 of shape ``(rows, dimension)``.

    Raises:
        InvalidVector: another shape, or NaN or infinity in a row; the message names the row.
    """
    array = np.asarray(vectors, dtype=np.float32)
    if array.shape != (rows, dimension):
        raise InvalidVector(f"expected vectors of shape ({rows}, {dimension}), got {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if bad.size:
        raise InvalidVector(f"vector {bad[0]} holds NaN or infinity", remedy="Check the embedder; nothing was stored.")
    return array


def checked_texts(texts: Sequence[str]) -> Sequence[str]:
    """``texts`` if each is valid text.

    Raises:
        InvalidInput: a single string was given, or one of the texts is none or not valid UTF-8; the message says which.
    """
    if isinstance(texts, str):
        raise InvalidInput("expected a list of texts, got one text", remedy="Put it in a list.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInput(f"text {index} is of type {type(text).__name__}, not str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"text {index} is not valid UTF-8 at character {error.start}") from None
    return texts
