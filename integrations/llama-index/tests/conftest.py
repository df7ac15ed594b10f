"""Memories that need no weights, over SQLite and over a real Weaviate."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rag_tuned_memory import Memories, Memory, Settings, Trajectory
from rag_tuned_memory.serving.scripted import ScriptedBackend
from weaviate_server import HOW, Server, server


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


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(lambda request: "no idea")


@pytest.fixture
def memory(settings: Settings, backend: ScriptedBackend) -> Iterator[Memory]:
    with Memory("alice", settings=settings, backend=backend) as opened:
        yield opened


@pytest.fixture
def memories(settings: Settings, backend: ScriptedBackend) -> Iterator[Memories]:
    with Memories(settings=settings, backend=backend) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "weaviate"])
def stored_memory(request: pytest.FixtureRequest, settings: Settings, backend: ScriptedBackend) -> Iterator[Memory]:
    """A memory over each kind of store."""
    if request.param == "weaviate":
        running: Server = request.getfixturevalue("weaviate")
        url = running.url(prefix=f"T{uuid.uuid4().hex[:8]}")
        settings = settings.model_copy(update={"store": url})
    with Memory("alice", settings=settings, backend=backend) as opened:
        yield opened


def episodes(memory: Memory) -> list[Trajectory]:
    """All that is stored, oldest first."""
    return list(memory.export())


def texts(memory: Memory) -> list[str]:
    """The text of every stored step."""
    return [step.text for episode in episodes(memory) for step in episode.steps]
