"""Fixtures of the serving tests: adapters on the tiny model, and backends over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from rag_tuned_memory.serving.local import LocalBackend
from tiny_model import build_random_adapter


@pytest.fixture(scope="session")
def adapter_a(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_adapter(tiny_model, tmp_path_factory.mktemp("a") / "a", seed=1)


@pytest.fixture(scope="session")
def adapter_b(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_adapter(tiny_model, tmp_path_factory.mktemp("b") / "b", seed=2, rank=8)


@pytest.fixture
def make_backend(tiny_model: Path) -> Iterator[Callable[..., LocalBackend]]:
    """Makes backends over the tiny model in float32 and closes them."""
    made: list[LocalBackend] = []

    def make(folder: Path = tiny_model, **settings: object) -> LocalBackend:
        made.append(LocalBackend(folder, **{"device": "cpu", "dtype": "float32", **settings}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for backend in made:
        anyio.run(backend.close)


@pytest.fixture
def backend(make_backend: Callable[..., LocalBackend]) -> LocalBackend:
    return make_backend()
