"""Writing many objects: what was acknowledged is compared with what was sent, and the rest is sent again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from weaviate.classes.data import DataObject
from weaviate.exceptions import WeaviateInsertManyAllFailedError, WeaviateQueryError

from rag_tuned_memory.errors import StoreError
from rag_tuned_memory.store.weaviate.connection import Objects
from rag_tuned_memory.store.weaviate.failures import is_transient, translate

_BATCH_OBJECTS = 200
_BATCH_BYTES = 20_000_000
"""A fifth of what the server takes in one message."""
_TRIES = 5
_AT_ONCE = 3
"""Batches on their way at the same time: one is made ready while the server works on others."""


@dataclass(frozen=True, slots=True)
class Sent:
    """An object to be written; ``label`` names it in errors, ``size`` is about its bytes."""

    id: UUID
    properties: dict[str, Any]
    label: str
    vector: dict[str, list[float]] | None = None
    size: int = 0


async def write_all(objects: Objects, sent: Sequence[Sent], place: str) -> None:
    """Write every object; each has its own id, so that writing it again changes nothing.

    Raises:
        StoreError, StoreFull, StoreUnavailable: some were not acknowledged after several tries; names each.
    """
    waiting = iter(_batches(sent))

    async def write() -> None:
        for batch in waiting:
            await _write_batch(objects, batch, place)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(write())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _write_batch(objects: Objects, batch: Sequence[Sent], place: str) -> None:
    left, failures = list(batch), dict[UUID, str]()
    for attempt in range(_TRIES):
        if attempt:
            await asyncio.sleep(random.uniform(0, 0.1 * 2**attempt))
        failures = await _write(objects, left)
        left = [one for one in left if one.id in failures]
        if not left or not any(is_transient(StoreReport(failures[one.id])) for one in left):
            break
    if left:
        raise _failure(left, failures, place)


class StoreReport(WeaviateQueryError):
    """What the server said of one object."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "GRPC batch")


async def _write(objects: Objects, batch: Sequence[Sent]) -> dict[UUID, str]:
    """Why an object was not acknowledged, by its id."""
    data = [DataObject(properties=one.properties, uuid=one.id, vector=one.vector) for one in batch]
    try:
        answer = await objects.data.insert_many(data)
    except WeaviateInsertManyAllFailedError as error:
        return {one.id: error.message for one in batch}
    acknowledged = set(answer.uuids.values())
    said = {batch[position].id: error.message for position, error in answer.errors.items()}
    return {one.id: said.get(one.id, "no answer") for one in batch if one.id not in acknowledged}


def _batches(sent: Sequence[Sent]) -> list[list[Sent]]:
    batches: list[list[Sent]] = []
    size = 0
    for one in sent:
        if not batches or len(batches[-1]) >= _BATCH_OBJECTS or size + one.size > _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(one)
        size += one.size
    return batches


def _failure(left: Sequence[Sent], failures: dict[UUID, str], place: str) -> Exception:
    first = translate(StoreReport(failures[left[0].id]), place)
    items = "; ".join(f"{one.label}: {' '.join(failures[one.id].split())[:120]}" for one in left[:10])
    more = f"; and {len(left) - 10} more" if len(left) > 10 else ""
    kind = type(first) if isinstance(first, StoreError) else StoreError
    return kind(f"{len(left)} objects were not written ({items}{more})", place=place, remedy=first.remedy)
