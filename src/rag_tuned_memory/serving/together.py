"""Doing the same for many things at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

T = TypeVar("T")
R = TypeVar("R")


async def together(function: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """``function`` of every item, all at once; the results in the order of the items.

    The first error is raised as it is, not in a group, and what still runs is cancelled.
    """
    results: dict[int, R] = {}
    errors: list[Exception] = []

    async def one(index: int, item: T) -> None:
        try:
            results[index] = await function(item)
        except Exception as error:
            errors.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for index, item in enumerate(items):
            group.start_soon(one, index, item)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]
