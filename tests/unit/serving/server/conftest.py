"""One server of this process for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from listening import listening

from rag_tuned_memory.serving.server.service import Options, Service
from rag_tuned_memory.serving.server.validate import Limits


@pytest.fixture(scope="module")
def adapters(adapter_a: Path, adapter_b: Path) -> dict[str, Path]:
    return {"ad1": adapter_a, "ad2": adapter_b}


@pytest.fixture(scope="module")
def served(tiny_model: Path, adapters: dict[str, Path]) -> Iterator[tuple[str, Service]]:
    limits = Limits(max_input_tokens=1000, max_total_tokens=2000)
    with listening(tiny_model, Options(limits), adapters) as found:
        yield found


@pytest.fixture(scope="module")
def url(served: tuple[str, Service]) -> str:
    return served[0]


@pytest.fixture(scope="module")
def service(served: tuple[str, Service]) -> Service:
    return served[1]


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as made:
        yield made
