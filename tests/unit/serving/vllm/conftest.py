"""A client of the double, on both event loops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_double import VllmDouble, vllm_double

from rag_tuned_memory.serving.vllm import VllmBackend


@pytest.fixture
def double() -> Iterator[VllmDouble]:
    with vllm_double() as one:
        yield one


@pytest.fixture
async def connect(double: VllmDouble, tiny_model: Path) -> AsyncIterator[Callable[..., VllmBackend]]:
    """Makes clients of the double and closes them."""
    made: list[VllmBackend] = []

    def make(**settings: Any) -> VllmBackend:
        made.append(VllmBackend(double.url, tiny_model, **{"timeout": 10.0, "max_retries": 0, **settings}))
        return made[-1]

    yield make
    double.gate.set()
    for backend in made:
        await backend.close()


@pytest.fixture
def backend(connect: Callable[..., VllmBackend]) -> VllmBackend:
    return connect()
