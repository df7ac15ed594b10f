"""The stores that every contract test runs on. A further store joins by one more entry in ``FACTORIES``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from rag_tuned_memory.store import EpisodeStore, open_store
from rag_tuned_memory.store.sqlite import SqliteStore

FACTORIES: dict[str, Callable[[Path], EpisodeStore]] = {
    "sqlite": lambda folder: open_store(f"sqlite:///{folder / 'memory.db'}"),
    "sqlite by signatures": lambda folder: SqliteStore(folder / "memory.db", exact_passages=0),
    "sqlite in memory": lambda folder: open_store("sqlite:///:memory:"),
}


@pytest.fixture(params=FACTORIES)
def new_store(request: pytest.FixtureRequest) -> Callable[[Path], EpisodeStore]:
    return FACTORIES[request.param]


@pytest.fixture
def store(new_store: Callable[[Path], EpisodeStore], tmp_path: Path) -> Iterator[EpisodeStore]:
    opened = new_store(tmp_path)
    yield opened
    anyio.run(opened.close)
