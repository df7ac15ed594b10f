"""Engine, LLM and agent over a model that computes: a tiny one, random weights and real grammar, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.response.schema import AsyncStreamingResponse
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool

from llama_index.memory.rag_tuned import RagTunedLLM, RagTunedQueryEngine
from rag_tuned_memory import Memory, Route, Settings
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.errors import PromptTooLong

pytest.importorskip("torch")
pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_model import build_tiny_model

    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def memory(settings: Settings, model: Path) -> Iterator[Memory]:
    with Memory("operations", settings=settings.model_copy(update={"model": str(model)})) as opened:
        opened.record_many(incidents("operations", episodes=3))
        yield opened


def restart(priority: int, urgent: bool) -> str:
    """Restart the service."""
    return f"restarted with priority {priority}{' at once' if urgent else ''}"


TOOL = FunctionTool.from_defaults(restart)


async def test_an_engine_streams_what_it_answers_at_once(memory: Memory) -> None:
    asked = "Which incident had a memory leak?"
    whole = RagTunedQueryEngine(memory, route=Route.RETRIEVAL, max_new_tokens=12).query(asked)
    streaming = RagTunedQueryEngine(memory, route=Route.RETRIEVAL, max_new_tokens=12, streaming=True)
    assert whole.metadata
    assert whole.metadata["answer_tokens"] > 0
    assert str(streaming.query(asked)).strip() == str(whole)
    awaited = await streaming.aquery(asked)
    assert isinstance(awaited, AsyncStreamingResponse)
    assert "".join([text async for text in awaited.response_gen]).strip() == str(whole)


async def test_calls_keep_to_their_schema_whatever_the_weights(memory: Memory) -> None:
    llm = RagTunedLLM(memory, model="base", max_tokens=96)
    for response in (
        llm.chat_with_tools([TOOL], user_msg="hm", tool_required=True),
        await llm.achat_with_tools([TOOL], user_msg="what?", tool_required=True),
        list(llm.stream_chat_with_tools([TOOL], "do it", tool_choice="restart"))[-1],
    ):
        calls = llm.get_tool_calls_from_response(response)
        assert {call.tool_name for call in calls} == {"restart"}
        for call in calls:
            assert isinstance(call.tool_kwargs["priority"], int)
            assert isinstance(call.tool_kwargs["urgent"], bool)


async def test_an_agent_runs_to_its_end(memory: Memory) -> None:
    agent = FunctionAgent(tools=[TOOL], llm=RagTunedLLM(memory, max_tokens=96), initial_tool_choice="restart")
    result = await agent.run(user_msg="The service hangs.", max_iterations=8, early_stopping_method="generate")
    assert [call.tool_name for call in result.tool_calls][:1] == ["restart"]


def test_a_prompt_that_does_not_fit_is_told(memory: Memory) -> None:
    with pytest.raises(PromptTooLong):
        RagTunedLLM(memory, model="base").chat([ChatMessage("word " * 4000)])
