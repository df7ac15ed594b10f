"""Memories of an operations agent whose parts need no weights, over SQLite and over a real Weaviate."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from adopted import script

from rag_tuned_memory import Memories, Memory, Settings
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.serving.scripted import ScriptedBackend
from weaviate_server import HOW, Server, server

NAMESPACE = "operations"


@pytest.fixture(scope="session")
def weaviate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Weaviate server."""
    for one in server(tmp_path_factory.mktemp("weaviate")):
        if one is None:
            pytest.skip(HOW)
        yield one


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache", embedder="hashing")


@pytest.fixture(params=["sqlite", "weaviate"])
def either_store(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Settings]:
    """Settings over each store in turn."""
    if request.param == "sqlite":
        yield settings
        return
    running: Server = request.getfixturevalue("weaviate")
    prefix = f"T{uuid.uuid4().hex[:10]}"
    yield settings.model_copy(update={"store": running.url(prefix=prefix)})
    running.drop(prefix)


@pytest.fixture
def backend() -> ScriptedBackend:
    """Says which model answers, and whether it was shown evidence."""
    return ScriptedBackend(script)


@pytest.fixture
def memories(settings: Settings, backend: ScriptedBackend) -> Iterator[Memories]:
    with Memories(settings=settings, backend=backend) as opened:
        yield opened


@pytest.fixture
def memory(memories: Memories) -> Memory:
    """A history of six incidents."""
    found = memories.of(NAMESPACE)
    found.record_many(incidents(NAMESPACE, episodes=6))
    return found
