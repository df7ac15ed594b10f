"""The stores that every contract test runs on. A further store joins by one more entry in ``FACTORIES``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import anyio
import pytest

from rag_tuned_memory.store import EpisodeStore, open_store
from rag_tuned_memory.store.sqlite import SqliteStore
from weaviate_server import Server

NewStore = Callable[[Path], EpisodeStore]
_WEAVIATE = "weaviate"

FACTORIES: dict[str, NewStore] = {
    "sqlite": lambda folder: open_store(f"sqlite:///{folder / 'memory.db'}"),
    "sqlite by signatures": lambda folder: SqliteStore(folder / "memory.db", exact_passages=0),
    "sqlite in memory": lambda folder: open_store("sqlite:///:memory:"),
}


@pytest.fixture(params=[*FACTORIES, _WEAVIATE])
def new_store(request: pytest.FixtureRequest) -> Iterator[NewStore]:
    """Opens the store that lies in a folder: the same one whenever it is the same folder."""
    if request.param != _WEAVIATE:
        yield FACTORIES[request.param]
        return
    server: Server = request.getfixturevalue("weaviate")
    begin = f"RtmTest{uuid4().hex[:8]}"

    def open_on_server(folder: Path) -> EpisodeStore:
        kept = folder / "prefix"
        if not kept.exists():
            kept.write_text(f"{begin}{uuid4().hex[:8]}", encoding="ascii")
        return open_store(server.url(prefix=kept.read_text(encoding="ascii")))

    yield open_on_server
    server.drop(begin)


@pytest.fixture
def store(new_store: NewStore, tmp_path: Path) -> Iterator[EpisodeStore]:
    opened = new_store(tmp_path)
    yield opened
    anyio.run(opened.close)
