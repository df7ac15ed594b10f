"""One piece of code for both: what is asked of a memory, by a program that waits and by one that awaits.

A plan is a generator that yields calls and is sent their results (or has their errors raised inside it); ``ask``
carries them out on ``Memory``'s methods, ``aask`` on the awaited twins of these.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rag_tuned_memory import Memory

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """A method of ``Memory`` with its arguments; what iterates is collected in a list."""

    method: str
    arguments: dict[str, Any] = field(default_factory=dict)


Plan = Generator[Call, Any, T]


def ask(memory: Memory, plan: Plan[T]) -> T:
    """Carry out a plan."""
    try:
        call = next(plan)
        while True:
            try:
                result = getattr(memory, call.method)(**call.arguments)
                result = list(result) if isinstance(result, Iterator) else result
            except Exception as error:
                call = plan.throw(error)
            else:
                call = plan.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def aask(memory: Memory, plan: Plan[T]) -> T:
    """As ``ask``, awaited."""
    try:
        call = next(plan)
        while True:
            try:
                result = getattr(memory, f"a{call.method}")(**call.arguments)
                result = [one async for one in result] if isinstance(result, AsyncIterator) else await result
            except Exception as error:
                call = plan.throw(error)
            else:
                call = plan.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
