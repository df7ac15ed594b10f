"""Values as stores keep them: times as numbers, vectors of length 1."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from rag_tuned_memory.embedding.base import Vectors

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ROUNDING = 1e-6
"""A vector of 32-bit numbers that was given length 1 differs from it by less."""


def microseconds(time: datetime | None) -> int | None:
    """Microseconds since 1970, which compare and store exactly."""
    return None if time is None else (time - _EPOCH) // _MICROSECOND


def moment(value: int | None) -> datetime | None:
    """The inverse of ``microseconds``, in UTC."""
    return None if value is None else _EPOCH + value * _MICROSECOND


def unit(vectors: Vectors) -> Vectors:
    """Rows of length 1, so that a dot product is the cosine; a row of zeros stays, and so does one that has it already.

    What was read from a store is written back bit by bit the same.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    kept = (lengths == 0) | (np.abs(lengths - 1) < _ROUNDING)
    return (vectors / np.where(kept, 1, lengths)).astype("<f4")
