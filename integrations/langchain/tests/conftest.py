"""Memories whose parts need no weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rag_tuned_memory import Memories, Memory, Settings
from rag_tuned_memory.serving.scripted import ScriptedBackend


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache", embedder="hashing")


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(lambda request: "yes the disk was full" if request.adapter else "no idea")


@pytest.fixture
def memory(settings: Settings, backend: ScriptedBackend) -> Iterator[Memory]:
    with Memory("operations", settings=settings, backend=backend) as opened:
        yield opened


@pytest.fixture
def memories(settings: Settings, backend: ScriptedBackend) -> Iterator[Memories]:
    with Memories(settings=settings, backend=backend) as opened:
        yield opened
