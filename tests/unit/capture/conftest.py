"""A memory and a recorder that need no weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rag_tuned_memory.capture import EpisodeRecorder
from rag_tuned_memory.memory import Memories
from rag_tuned_memory.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache", embedder="hashing")


@pytest.fixture
def memories(settings: Settings) -> Iterator[Memories]:
    with Memories(settings=settings) as opened:
        yield opened


@pytest.fixture
def recorder(memories: Memories) -> Iterator[EpisodeRecorder]:
    with EpisodeRecorder(memories) as opened:
        yield opened
