"""Answers of a real (tiny, random) model that are held to a pattern."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.base import Message, Request
from rag_tuned_memory.serving.local import LocalBackend
from rag_tuned_memory.serving.tools import Tool, pattern, read

pytestmark = pytest.mark.anyio
ASKED = (Message("user", "Go."),)


@pytest.fixture
async def backend(tiny_model: Path) -> AsyncIterator[LocalBackend]:
    opened = LocalBackend(tiny_model)
    yield opened
    await opened.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_the_answer_matches_and_then_ends(backend: LocalBackend, temperature: float) -> None:
    requests = [Request(ASKED, max_new_tokens=40, pattern="(yes|no)!", temperature=temperature, seed=n) for n in (1, 2)]
    for done in await backend.generate([*requests, Request(ASKED, max_new_tokens=4)]):
        assert done.finish_reason == "length" or re.fullmatch("(yes|no)!", done.text)
    assert all(one.text in ("yes!", "no!") for one in await backend.generate(requests))


async def test_a_random_model_calls_a_tool_as_it_must(backend: LocalBackend) -> None:
    tools = [Tool(name=name, parameters={"properties": {}}) for name in ("left", "right")]
    request = Request(ASKED, max_new_tokens=120, pattern=pattern(tools, required=True))
    (done,) = await backend.generate([request])
    assert [call.name for call in read(done.text).calls] in (["left"], ["right"])
    streamed = "".join([chunk.text async for chunk in backend.stream(request)])
    assert streamed == done.text


async def test_what_a_random_model_writes_into_a_string_can_be_read(backend: LocalBackend) -> None:
    tool = Tool(name="say", parameters={"properties": {"text": {"type": "string"}}, "required": ["text"]})
    asked = pattern([tool], required=True)
    requests = [Request(ASKED, max_new_tokens=200, pattern=asked, temperature=1.0, seed=seed) for seed in range(8)]
    ended = [done for done in await backend.generate(requests) if done.finish_reason == "stop"]
    assert ended
    assert all(isinstance(read(done.text).calls[0].arguments["text"], str) for done in ended)


async def test_a_bad_pattern_is_an_error_of_its_request_only(backend: LocalBackend) -> None:
    with pytest.raises(InvalidInput, match="grammar"):
        await backend.generate([Request(ASKED, pattern="(")])
    assert await backend.generate([Request(ASKED, max_new_tokens=2)])
