"""Many namespaces over one store, and one memory for both kinds of callers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from incidents import episode
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace
from rag_tuned_memory.memory import Memories, Memory
from rag_tuned_memory.routing.base import Route
from rag_tuned_memory.serving.scripted import ScriptedBackend
from rag_tuned_memory.settings import Settings


@pytest.fixture
def memories(settings: Settings, backend: ScriptedBackend) -> Iterator[Memories]:
    with Memories(settings=settings, backend=backend) as opened:
        yield opened


def test_namespaces_share_a_store_and_see_only_their_own(memories: Memories) -> None:
    memories.of("alice").record(episode(1))
    memories.of("bob").record(episode(2))
    assert [memories.of(name).stats().store.trajectories for name in ("alice", "bob", "carol")] == [1, 1, 0]


def test_closing_one_leaves_the_others_open(memories: Memories) -> None:
    with memories.of("alice") as alice:
        alice.record(episode())
    memories.of("bob").record(episode())
    assert memories.of("alice").recall("disk").results


def test_a_namespace_must_be_one(memories: Memories) -> None:
    with pytest.raises(InvalidNamespace):
        memories.of(" ")


def test_it_can_be_awaited_from_one_loop_after_another(memory: Memory) -> None:
    asyncio.run(memory.arecord(episode()))
    assert asyncio.run(memory.arecall("disk")).results


def test_what_is_awaited_raises_what_the_core_raises(memory: Memory) -> None:
    with pytest.raises(InvalidInput, match="non-empty"):
        asyncio.run(memory.arecall(" "))


def test_an_awaited_stream_comes_in_pieces_and_may_be_left(memory: Memory) -> None:
    memory.record(episode())

    async def pieces(most: int) -> list[Any]:
        got = []
        stream = memory.astream("which disk is full?", route=Route.RETRIEVAL)
        async for chunk in stream:
            got.append(chunk)
            if len(got) == most:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return got

    assert len(asyncio.run(pieces(1))) == 1
    every = asyncio.run(pieces(100))
    assert "".join(chunk.text for chunk in every) == "no idea"
    assert every[-1].answer is not None


def test_cancelling_ends_what_is_awaited(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    async def forever(*_: object) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    monkeypatch.setattr("rag_tuned_memory.memory.recording.record", forever)
    with Memory("a", settings=settings) as memory:

        async def cancelled() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(memory.arecord(episode()), 0.2)
            for _ in range(100):
                if ended:
                    return
                await asyncio.sleep(0.02)

        asyncio.run(cancelled())
    assert ended
