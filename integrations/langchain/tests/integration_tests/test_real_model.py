"""The chat model over real weights, here and on a server: a tiny model that knows nothing, held to its grammar."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from pydantic import BaseModel, ConfigDict

from incidents import episode
from langchain_rag_tuned_memory import ChatRagTuned
from model_server import ModelServer, start, stop
from rag_tuned_memory import Memory, Settings
from tiny_model import build_tiny_model

pytest.importorskip("torch")
pytest.importorskip("llguidance")


@tool
def restart(service: Literal["api", "db"], how: Literal["hard", "soft"]) -> str:
    """Restart a service."""
    return f"{service} was restarted"


class Verdict(BaseModel):
    """What became of it."""

    model_config = ConfigDict(extra="forbid")

    cause: Literal["disk", "network"]
    solved: bool


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[ModelServer]:
    running = start(model)
    yield running
    stop(running)


@pytest.fixture(scope="module", params=["", "tgi+{url}"], ids=["in process", "server"])
def memory(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    folder = tmp_path_factory.mktemp("memory")
    backend = request.param and request.param.format(url=request.getfixturevalue("server").url)
    settings = Settings(home=folder, cache=folder, embedder="hashing", model=str(model), backend=backend)
    with Memory("operations", settings=settings) as opened:
        opened.record(episode())
        yield opened


def test_by_route_and_by_name(memory: Memory) -> None:
    model = ChatRagTuned(memory=memory, max_tokens=8)
    routed, named = model.invoke("which disk is full?"), model.invoke("which disk is full?", model="base")
    assert routed.response_metadata["route"] == "retrieval"
    assert routed.response_metadata["model_name"] == named.response_metadata["model_name"] == "tiny"
    for message in (routed, named):
        usage = message.usage_metadata
        assert usage is not None
        assert 0 < usage["output_tokens"] <= 8 < usage["input_tokens"]
    assert routed.usage_metadata["input_tokens"] > named.usage_metadata["input_tokens"]  # type: ignore[index]


def test_a_stream_says_what_an_invocation_says(memory: Memory) -> None:
    model = ChatRagTuned(memory=memory, max_tokens=8, model="base")

    async def pieces() -> list[str]:
        return [str(chunk.content) async for chunk in model.astream("hello there")]

    text = model.invoke("hello there").content
    assert "".join(str(chunk.content) for chunk in model.stream("hello there")).strip() == text
    assert "".join(asyncio.run(pieces())).strip() == text


@pytest.mark.parametrize("seed", range(3))
def test_random_weights_still_write_calls_that_can_be_run(memory: Memory, seed: int) -> None:
    model = ChatRagTuned(memory=memory, model="base", temperature=1.0, seed=seed)
    message = model.bind_tools([restart], tool_choice="any").invoke([HumanMessage("restart the database")])
    assert isinstance(message, AIMessage)
    assert message.invalid_tool_calls == []
    assert all(restart.invoke(call).content.endswith("was restarted") for call in message.tool_calls)  # type: ignore[arg-type]
    assert message.tool_calls


@pytest.mark.parametrize("model_name", ["base", "route"])
def test_structured_output_is_of_the_schema(memory: Memory, model_name: str) -> None:
    chain = ChatRagTuned(memory=memory, model=model_name).with_structured_output(Verdict)
    verdict: Any = chain.invoke("which disk is full?")
    assert isinstance(verdict, Verdict)
    assert isinstance(asyncio.run(chain.ainvoke("which disk is full?")), Verdict)
