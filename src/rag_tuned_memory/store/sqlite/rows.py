"""How values of the store's types are written to columns, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apsw
import numpy as np
from numpy.typing import NDArray

from rag_tuned_memory.embedding.base import Vectors
from rag_tuned_memory.store.base import Passage
from rag_tuned_memory.store.values import microseconds, moment
from rag_tuned_memory.trajectory import StepKind

Values = Sequence[Any] | Mapping[str, Any]
"""Parameters of an SQL statement."""

PASSAGE_COLUMNS = "p.step, p.chunk, p.time, p.tool, p.kind, p.actor, p.ref, p.text, p.indexed"
"""The columns that ``passage`` reads, for a query that calls the table ``p``."""


def passage(trajectory_id: str, columns: Sequence[Any]) -> Passage:
    """A passage from the columns of ``PASSAGE_COLUMNS``."""
    step, chunk, time, tool, kind, actor, ref, text, indexed = columns
    return Passage(
        trajectory_id=trajectory_id,
        step=step,
        chunk=chunk,
        kind=None if kind is None else StepKind(kind),
        text=text,
        indexed=indexed,
        actor=actor,
        tool=tool,
        ref=ref,
        time=moment(time),
    )


def passage_columns(value: Passage) -> tuple[Any, ...]:
    """The inverse of ``passage``."""
    return (
        value.step,
        value.chunk,
        microseconds(value.time),
        value.tool,
        None if value.kind is None else value.kind.value,
        value.actor,
        value.ref,
        value.text,
        value.indexed,
    )


def signatures(vectors: Vectors) -> NDArray[np.uint8]:
    """One bit a dimension: whether it is positive. Shape ``(rows, ceil(dimension / 8))``."""
    return np.packbits(vectors > 0, axis=-1, bitorder="little")


def rows(db: apsw.Connection, sql: str, values: Values = ()) -> Iterator[tuple[Any, ...]]:
    """The rows of a query, read as they are asked for."""
    return db.execute(sql, values)


def value(db: apsw.Connection, sql: str, values: Values = ()) -> Any:
    """The value of a query's only row: alone if it has one column, a tuple otherwise; None where there is no row."""
    return db.execute(sql, values).get
