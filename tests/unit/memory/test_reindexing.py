from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest

from incidents import episode
from rag_tuned_memory.embedding import HashingEmbedder
from rag_tuned_memory.embedding.base import Vectors
from rag_tuned_memory.errors import EmbedderMismatch, InvalidInput, InvalidVector
from rag_tuned_memory.memory import Memory
from rag_tuned_memory.settings import Settings


class Counting(HashingEmbedder):
    """Counts what it embeds, and fails when it is told to."""

    def __init__(self, dimension: int = 64, fail_after: int | None = None, bad: bool = False) -> None:
        super().__init__(dimension)
        self.passages = 0
        self.calls = 0
        self.fail_after, self.bad = fail_after, bad

    async def embed(  # type: ignore[override]
        self, texts: Sequence[str], *, kind: Literal["passage", "query"] = "passage"
    ) -> Vectors:
        self.calls += kind == "passage"
        if self.fail_after is not None and self.calls > self.fail_after:
            raise InvalidInput("no more today")
        self.passages += len(texts) if kind == "passage" else 0
        vectors = await super().embed(texts, kind=kind)
        if self.bad:
            vectors[0, 0] = float("nan")
        return vectors


@pytest.fixture
def recorded(settings: Settings) -> Settings:
    with Memory("operations", settings=settings) as memory:
        memory.record_many(episode(n) for n in range(1, 6))
    return settings


def test_another_embedder_is_refused_until_the_vectors_are_rebuilt(recorded: Settings) -> None:
    with Memory("operations", settings=recorded, embedder=HashingEmbedder(64)) as memory:
        with pytest.raises(EmbedderMismatch, match="rtm reindex"):
            memory.recall("disk")
        with pytest.raises(EmbedderMismatch):
            memory.record(episode(9))
        told: list[tuple[int, int]] = []
        assert memory.reindex(progress=lambda done, total: told.append((done, total))) == 5
        assert told == [(n, 5) for n in range(1, 6)]
        assert memory.recall("is the disk of db-3 full?", k=1).results
        assert memory.record(episode(9)).changed
        assert memory.stats().store.trajectories == 6
        assert not any((recorded.home / "reindex").rglob("*.npy"))


def test_an_interrupted_rebuild_goes_on_where_it_was(recorded: Settings) -> None:
    first = Counting(fail_after=3)
    with (
        Memory("operations", settings=recorded, embedder=first) as memory,
        pytest.raises(InvalidInput, match="no more today"),
    ):
        memory.reindex()
    with Memory("operations", settings=recorded) as memory:  # meanwhile the old vectors serve
        assert memory.recall("disk").results
    second = Counting()
    with Memory("operations", settings=recorded, embedder=second) as memory:
        assert memory.reindex() == 5
        assert second.calls == 2
        assert memory.recall("disk").results


def test_bad_vectors_leave_the_old_ones(recorded: Settings) -> None:
    with Memory("operations", settings=recorded, embedder=Counting(bad=True)) as memory, pytest.raises(InvalidVector):
        memory.reindex()
    with Memory("operations", settings=recorded) as memory:
        assert memory.recall("disk").results


def test_an_empty_namespace(settings: Settings) -> None:
    with Memory("operations", settings=settings) as memory:
        assert memory.reindex() == 0
