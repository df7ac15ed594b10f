"""Conversations that are given to a model as they are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from incidents import episode
from rag_tuned_memory.errors import AdapterNotFound, AdapterNotServable, InvalidInput
from rag_tuned_memory.memory import Memories, Memory
from rag_tuned_memory.serving.base import Message
from rag_tuned_memory.serving.scripted import ScriptedBackend
from rag_tuned_memory.settings import Settings
from served_adapter import register

ASKED = (Message("system", "be brief"), Message("user", "which disk?"))


@pytest.fixture
def serving(memory: Memory, tmp_path: Path) -> str:
    name = register(memory.registry, "operations", tmp_path, ["one"], sequence=1).name
    memory.registry.promote(name, "good")
    return name


def test_the_base_model_gets_the_conversation_as_it_is(memory: Memory, backend: ScriptedBackend) -> None:
    done = memory.generate(ASKED, max_new_tokens=7, temperature=0.5, seed=3, stop=["zz"], pattern="n.*")
    assert (done.text, done.adapter) == ("no idea", None)
    asked = backend.requests[-1]
    assert (asked.messages, asked.adapter) == (ASKED, None)
    assert (asked.max_new_tokens, asked.temperature, asked.seed, asked.stop) == (7, 0.5, 3, ("zz",))
    assert asked.pattern == "n.*"


def test_an_adapter_that_serves_is_loaded_and_answers(memory: Memory, serving: str) -> None:
    done = memory.generate(ASKED, adapter=serving)
    assert (done.text, done.adapter) == ("yes the disk was full", serving)


def test_in_pieces(memory: Memory, serving: str) -> None:
    chunks = list(memory.stream_generate(ASKED, adapter=serving))
    assert "".join(chunk.text for chunk in chunks) == "yes the disk was full"
    assert chunks[-1].generation
    assert chunks[-1].generation.adapter == serving


def test_awaited(memory: Memory, serving: str) -> None:
    async def both() -> tuple[str, str]:
        done = await memory.agenerate(ASKED)
        pieces = [chunk.text async for chunk in memory.astream_generate(ASKED, adapter=serving)]
        return done.text, "".join(pieces)

    assert asyncio.run(both()) == ("no idea", "yes the disk was full")


def test_the_version_before_answers_while_it_is_loaded(memory: Memory, serving: str, tmp_path: Path) -> None:
    memory.generate(ASKED, adapter=serving)
    newer = register(memory.registry, "operations", tmp_path, ["one", "two"], sequence=2).name
    memory.promote(newer, "better")
    assert memory.generate(ASKED, adapter=newer).adapter == newer
    assert memory.generate(ASKED, adapter=serving).adapter == serving


def test_an_adapter_that_does_not_serve_never_answers(memory: Memory, serving: str, tmp_path: Path) -> None:
    rejected = register(memory.registry, "operations", tmp_path, ["one"], accepted=False).name
    with pytest.raises(AdapterNotServable, match=f"{rejected} does not serve. {serving} serves now"):
        memory.generate(ASKED, adapter=rejected)
    learned = memory.record(episode()).id
    tainted = register(memory.registry, "operations", tmp_path, [learned], sequence=2).name
    memory.promote(tainted, "better")
    memory.generate(ASKED, adapter=tainted)
    memory.forget([learned])
    with pytest.raises(AdapterNotServable, match="does not serve"):
        list(memory.stream_generate(ASKED, adapter=tainted))


def test_another_namespace_s_adapter_is_not_found(settings: Settings, backend: ScriptedBackend, tmp_path: Path) -> None:
    with Memories(settings=settings, backend=backend) as memories:
        alice = memories.of("alice")
        name = register(alice.registry, "alice", tmp_path, ["one"], sequence=1).name
        alice.registry.promote(name, "good")
        assert alice.generate(ASKED, adapter=name).adapter == name
        with pytest.raises(AdapterNotFound):
            memories.of("bob").generate(ASKED, adapter=name)
    assert {request.adapter for request in backend.requests if request.messages == ASKED} == {name}


def test_an_adapter_that_the_server_lost_is_loaded_again(
    memory: Memory, backend: ScriptedBackend, serving: str
) -> None:
    memory.generate(ASKED, adapter=serving)
    unload = memory._running.portal().call
    unload(backend.unload_adapter, serving)  # as a server that was restarted
    assert memory.generate(ASKED, adapter=serving).adapter == serving
    unload(backend.unload_adapter, serving)
    assert "".join(one.text for one in memory.stream_generate(ASKED, adapter=serving)) == "yes the disk was full"


@pytest.mark.parametrize(
    ("messages", "options", "place"),
    [((), {}, "messages"), (ASKED, {"max_new_tokens": 0}, "max_new_tokens")],
)
def test_bad_input_names_its_place(
    memory: Memory, messages: tuple[Message, ...], options: dict[str, int], place: str
) -> None:
    with pytest.raises(InvalidInput, match=place):
        memory.generate(messages, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=place):
        list(memory.stream_generate(messages, **options))  # type: ignore[arg-type]
