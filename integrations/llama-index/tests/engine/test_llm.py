"""The models behind a memory as an LLM."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adopted import CANARY, adopt, script
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, MessageRole
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from llama_index.memory.rag_tuned import RagTunedLLM
from rag_tuned_memory import Memories, Memory, Settings
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.distil.dialogue import memory_messages
from rag_tuned_memory.errors import (
    AdapterNotFound,
    AdapterNotServable,
    BackendUnavailable,
    InvalidInput,
    InvalidNamespace,
    StoreUnavailable,
)
from rag_tuned_memory.recall.prompt import OPENING, assemble, has_injected
from rag_tuned_memory.serving.base import Message, Request
from rag_tuned_memory.serving.scripted import ScriptedBackend

FIRST = incidents("operations", episodes=1)[0]
ASKED = f"What was the cause of {FIRST.source_id}?"
GENERAL = "Who painted the ceiling?"
CHAT = [ChatMessage(ASKED)]


def user(text: str) -> ChatMessage:
    return ChatMessage(text, role=MessageRole.USER)


def said(text: str) -> ChatMessage:
    return ChatMessage(text, role=MessageRole.ASSISTANT)


@pytest.fixture
def adapter(memory: Memory, tmp_path: Path) -> str:
    return adopt(memory, tmp_path, [ASKED])


def scripted(settings: Settings, answer: Callable[[Request], str]) -> Memory:
    """A memory of one incident whose model says what the function says."""
    memory = Memory("operations", settings=settings, backend=ScriptedBackend(answer))
    memory.record_many(incidents("operations", episodes=1))
    return memory


async def every_way(llm: RagTunedLLM, chat: list[ChatMessage], **options: Any) -> list[ChatResponse]:
    """The last response of each flavour of asking."""
    streamed = list(llm.stream_chat(chat, **options))
    awaited = [one async for one in await llm.astream_chat(chat, **options)]
    return [llm.chat(chat, **options), await llm.achat(chat, **options), streamed[-1], awaited[-1]]


def test_is_a_function_calling_llm(memory: Memory) -> None:
    assert FunctionCallingLLM.__name__ in [one.__name__ for one in RagTunedLLM.__mro__]
    told = RagTunedLLM(memory, max_tokens=99, context_window=1000).metadata
    assert told.is_function_calling_model
    assert told.is_chat_model
    assert (told.num_output, told.context_window, told.model_name) == (99, 1000, "SmolLM2-135M-Instruct")


async def test_the_route_chooses_for_each_call(memory: Memory, adapter: str) -> None:
    llm = RagTunedLLM(memory)
    for response in await every_way(llm, CHAT):
        assert response.message.content == f"{adapter}, no evidence"
        assert response.raw["adapter"] == response.raw["model"] == adapter
        assert (response.raw["route"], response.raw["evidence"]) == ("tuned", [])
    for response in await every_way(llm, [user(GENERAL)]):
        assert response.message.content == "base, no evidence"
        assert (response.raw["route"], response.raw["adapter"]) == ("none", None)
        assert response.raw["model"] == "SmolLM2-135M-Instruct"


async def test_evidence_is_shown_and_told(memory: Memory, backend: ScriptedBackend) -> None:
    routing = memory.decide(ASKED)
    for response in await every_way(RagTunedLLM(memory), CHAT):
        assert response.message.content == "base, evidence"
        told = response.raw
        assert (told["route"], told["namespace"], told["abstained"]) == ("retrieval", "operations", False)
        assert told["reason"] == routing.decision.reason
        assert told["evidence"][0] == FIRST.id
        assert told["usage"]["completion_tokens"] == 2 == response.additional_kwargs["completion_tokens"]
        assert told["usage"]["total_tokens"] == told["usage"]["prompt_tokens"] + 2
        assert json.loads(json.dumps(told)) == told
        assert backend.requests[-1].messages == memory_messages(ASKED, assemble(routing.recollection))


async def test_a_longer_chat_keeps_its_system_message(memory: Memory, backend: ScriptedBackend) -> None:
    chat = [ChatMessage("be brief", role="system"), user("hi"), said("yes?"), user(ASKED)]
    await RagTunedLLM(memory).achat(chat)
    system, *rest = backend.requests[-1].messages
    assert rest == [Message("user", "hi"), Message("assistant", "yes?"), Message("user", ASKED)]
    assert "be brief" in system.content
    assert system.content.endswith(assemble(memory.decide(ASKED).recollection))


async def test_what_a_memory_put_there_is_not_told_twice(
    memory: Memory, adapter: str, backend: ScriptedBackend
) -> None:
    fenced = assemble(memory.recall(ASKED, k=1))
    chat = [ChatMessage(f"be brief\n{fenced}", role="system"), user(ASKED)]
    response = await RagTunedLLM(memory).achat(chat)
    assert backend.requests[-1].messages == (Message("system", f"be brief\n{fenced}"), Message("user", ASKED))
    assert (response.raw["adapter"], response.raw["evidence"]) == (adapter, [])
    beside = [user(f"{ASKED}\n{fenced}")]
    assert (await RagTunedLLM(memory).achat(beside)).raw["adapter"] == adapter
    assert sum(message.content.count(OPENING) for message in backend.requests[-1].messages) == 1


async def test_a_named_model_takes_the_chat_as_it_is(memory: Memory, adapter: str, backend: ScriptedBackend) -> None:
    for llm in (RagTunedLLM(memory, model="base"), RagTunedLLM(memory, model="SmolLM2-135M-Instruct")):
        for response in await every_way(llm, CHAT):
            assert response.message.content == "base, no evidence"
            assert (response.raw["route"], response.raw["reason"]) == (None, "asked for")
    assert backend.requests[-1].messages == (Message("user", ASKED),)
    for response in await every_way(RagTunedLLM(memory), [user(GENERAL)], model=adapter):
        assert response.message.content == f"{adapter}, no evidence"
    with pytest.raises(AdapterNotFound):
        RagTunedLLM(memory, model="operations-v9").chat(CHAT)


async def test_what_was_never_seen_is_declined_without_a_model(memory: Memory, backend: ScriptedBackend) -> None:
    before = len(backend.requests)
    for response in await every_way(RagTunedLLM(memory), [user("Did the agent see INC-0000?")]):
        assert "INC-0000" in str(response.message.content)
        assert response.raw["abstained"] is True
        assert response.raw["usage"]["total_tokens"] == 0
    assert len(backend.requests) == before


async def test_pieces_add_up(memory: Memory) -> None:
    pieces = list(RagTunedLLM(memory).stream_chat(CHAT))
    assert [piece.delta for piece in pieces] == ["base,", " evidence", ""]
    assert [piece.message.content for piece in pieces] == ["base,", "base, evidence", "base, evidence"]
    assert {piece.raw["route"] for piece in pieces} == {"retrieval"}
    assert "usage" not in pieces[0].raw
    awaited = [piece async for piece in await RagTunedLLM(memory).astream_chat(CHAT)]
    assert [piece.message for piece in awaited] == [piece.message for piece in pieces]


async def test_completions(memory: Memory) -> None:
    llm = RagTunedLLM(memory)
    assert llm.complete(ASKED).text == (await llm.acomplete(ASKED)).text == "base, evidence"
    assert [one.delta for one in llm.stream_complete(ASKED)] == ["base,", " evidence", ""]
    assert [one.text async for one in await llm.astream_complete(ASKED)][-1] == "base, evidence"
    assert llm.complete(ASKED, model="base").text == "base, no evidence"


async def test_options_of_a_call_reach_the_model(memory: Memory, backend: ScriptedBackend) -> None:
    llm = RagTunedLLM(memory, model="base", max_tokens=7, stop=("zz",))
    await llm.achat(CHAT)
    asked = backend.requests[-1]
    assert (asked.max_new_tokens, asked.temperature, asked.seed, asked.stop) == (7, 0.0, None, ("zz",))
    await every_way(llm, CHAT, max_tokens=1, temperature=0.5, seed=3, stop="x")
    asked = backend.requests[-1]
    assert (asked.max_new_tokens, asked.temperature, asked.seed, asked.stop) == (1, 0.5, 3, ("x",))
    llm.chat(CHAT, model="route", k=1)
    assert len(RagTunedLLM(memory, k=1).chat(CHAT).raw["evidence"]) == 1


def test_a_length_that_was_cut_is_told(memory: Memory) -> None:
    assert RagTunedLLM(memory, max_tokens=1).chat(CHAT).raw["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "place"),
    [({"k": 0}, "k"), ({"max_tokens": 0}, "max_tokens"), ({"psychic": 1}, "psychic"), ({"temperature": -1}, "temp")],
)
async def test_bad_options_are_named(memory: Memory, fields: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidInput, match=place):
        RagTunedLLM(memory).chat(CHAT, **fields)
    with pytest.raises(InvalidInput, match="may be given"):
        await RagTunedLLM(memory).achat(CHAT, **fields)


async def test_bad_chats_are_named(memory: Memory) -> None:
    llm = RagTunedLLM(memory)
    picture = ChatMessage(role="user", blocks=[ImageBlock(url="https://example.com/a.png")])
    for chat, place in (
        ([], "messages: a conversation needs at least one"),
        ([user("hi"), picture], r"messages\.1: .*'image'"),
    ):
        with pytest.raises(InvalidInput, match=place):
            llm.chat(chat)
        with pytest.raises(InvalidInput, match=place):
            await llm.astream_chat(chat)


async def test_a_chat_without_a_question_goes_to_the_base(memory: Memory, adapter: str) -> None:
    for chat in ([ChatMessage("be brief", role="system")], [user("")], [user("  ")]):
        for response in await every_way(RagTunedLLM(memory), chat):
            assert (response.raw["adapter"], response.raw["route"]) == (None, None)
            assert response.raw["reason"] == "no user's message asks anything"
    assert adapter


async def test_a_memory_that_fails_leaves_the_base_model(
    settings: Settings, backend: ScriptedBackend, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("weaviate")
    pytest.importorskip("snowballstemmer")
    down = settings.model_copy(update={"store": "weaviate://127.0.0.1:9?grpc=10&deadline=1"})
    with Memory("operations", settings=down, backend=backend) as memory, caplog.at_level(logging.WARNING):
        response = await RagTunedLLM(memory).achat(CHAT)
        assert response.message.content == "base, no evidence"
        assert response.raw["reason"] == "the memory failed: StoreUnavailable"
        assert "without memory" in caplog.text
        with pytest.raises(StoreUnavailable):
            RagTunedLLM(memory, on_error="raise").chat(CHAT)


async def test_a_model_that_fails_is_told(settings: Settings) -> None:
    def fails(request: Request) -> str:
        raise BackendUnavailable("the server is down")

    with scripted(settings, fails) as memory:
        llm = RagTunedLLM(memory)
        with pytest.raises(BackendUnavailable):
            llm.chat(CHAT)
        with pytest.raises(BackendUnavailable):
            await llm.achat(CHAT)
        with pytest.raises(BackendUnavailable):
            list(llm.stream_chat(CHAT))
        with pytest.raises(BackendUnavailable):
            _ = [one async for one in await llm.astream_chat(CHAT)]


async def test_a_stream_that_is_left_leaves_nothing_running(memory: Memory) -> None:
    llm = RagTunedLLM(memory)
    left = llm.stream_chat(CHAT)
    next(left)
    aleft = await llm.astream_chat(CHAT)
    await anext(aleft)
    left.close()
    await aleft.aclose()
    gc.collect()
    for _ in range(100):
        await asyncio.sleep(0.02)
        if all(task.done() for task in memory._running.iterations):
            break
    assert all(task.done() for task in memory._running.iterations)


def test_nothing_of_the_memory_is_serialised_or_shown(settings: Settings) -> None:
    secret = settings.model_copy(update={"weaviate_api_key": "s3cret", "backend_key": "s3cret"})
    with Memory("operations", settings=secret) as memory:
        llm = RagTunedLLM(memory)
        for text in (repr(llm), str(llm), llm.to_json(), str(llm.to_dict())):
            assert "s3cret" not in text
            assert "Memory(" not in text
        assert llm.to_dict()["model"] == "route"


def test_a_copy_asks_the_same_memory(memory: Memory, adapter: str) -> None:
    for one in (copy.deepcopy(RagTunedLLM(memory)), RagTunedLLM(memory).model_copy(update={"max_tokens": 9})):
        assert one.chat(CHAT).raw["adapter"] == adapter


async def test_each_user_has_his_own_adapter(memories: Memories, tmp_path: Path) -> None:
    from contextvars import ContextVar

    for name in ("alice", "bob"):
        memories.of(name).record_many(incidents(name, episodes=2))
    adopt(memories.of("alice"), tmp_path, [ASKED])
    current: ContextVar[str | None] = ContextVar("current", default=None)
    llm = RagTunedLLM(memories, namespace=current.get)

    async def ask(name: str) -> str:
        current.set(name)
        pieces = [one async for one in await llm.astream_chat(CHAT)]
        return str(pieces[-1].message.content)

    found = await asyncio.gather(*(ask(name) for name in ["alice", "bob"] * 4))
    assert found == ["alice-v1, no evidence", "base, evidence"] * 4
    with pytest.raises(InvalidNamespace):
        await llm.achat(CHAT)
    with pytest.raises(AdapterNotFound):
        RagTunedLLM(memories, namespace="bob").chat(CHAT, model="alice-v1")


async def test_a_tainted_adapter_stops_at_once(memory: Memory, adapter: str) -> None:
    llm = RagTunedLLM(memory)
    assert llm.chat(CHAT).raw["adapter"] == adapter
    memory.forget([FIRST.id])
    assert (await llm.achat(CHAT)).raw["adapter"] is None
    with pytest.raises(AdapterNotServable):
        llm.chat(CHAT, model=adapter)


# tools


def read_logs(service: str, lines: int = 10) -> str:
    """Read the logs of a service."""
    return f"{service}: {lines} lines, disk full"


def purge(path: str) -> str:
    """Purge old files."""
    raise OSError(f"{path} is read-only")


TOOLS = [FunctionTool.from_defaults(read_logs), FunctionTool.from_defaults(purge)]
CALL = '<tool_call>[{"name": "read_logs", "arguments": {"service": "db é"}}]</tool_call>'


def acting(request: Request) -> str:
    """Looks at the logs, then says what it saw."""
    if request.messages[-1].content == CANARY:
        return script(request)
    last = request.messages[-1].content
    if "<tool_response>" in last:
        return f"{request.adapter or 'base'} saw {last}"
    return f"I look.\n{CALL}"


async def test_tools_are_told_and_called(settings: Settings) -> None:
    with scripted(settings, acting) as memory:
        llm = RagTunedLLM(memory)
        responses = [
            llm.chat_with_tools(TOOLS, user_msg="why?", allow_parallel_tool_calls=True),
            await llm.achat_with_tools(TOOLS, chat_history=[user("why?")]),
            list(llm.stream_chat_with_tools(TOOLS, "why?"))[-1],
            [one async for one in await llm.astream_chat_with_tools(TOOLS, ChatMessage("why?"))][-1],
        ]
        for response in responses:
            assert response.message.content == "I look."
            (call,) = llm.get_tool_calls_from_response(response)
            assert (call.tool_name, call.tool_kwargs) == ("read_logs", {"service": "db é"})
            assert call.tool_id.startswith("call_")
            assert response.raw["finish_reason"] == "tool_calls"
        asked = memory._core._parts.backend().requests[-1]
        assert "read_logs(service: string, lines?: integer): read_logs(" in asked.messages[0].content
        assert asked.pattern is not None


def test_calls_are_not_shown_in_a_stream(settings: Settings) -> None:
    with scripted(settings, acting) as memory:
        pieces = list(RagTunedLLM(memory).stream_chat_with_tools(TOOLS, "why?"))
        assert "".join(piece.delta or "" for piece in pieces).strip() == "I look."
        assert all("tool_call" not in str(piece.message.content) for piece in pieces)
        assert [bool(piece.message.additional_kwargs) for piece in pieces] == [False] * (len(pieces) - 1) + [True]


async def test_what_was_called_and_answered_is_told_again(memory: Memory, backend: ScriptedBackend) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "read_logs", "arguments": '{"service": "db"}'}}
    chat = [
        user(GENERAL),
        ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [call]}),
        ChatMessage(role="tool", content="full </tool_response>", additional_kwargs={"tool_call_id": "c1"}),
    ]
    await RagTunedLLM(memory).achat_with_tools(TOOLS, chat_history=chat)
    _, asked, called, answered = backend.requests[-1].messages
    assert asked == Message("user", GENERAL)
    assert called.content == '<tool_call>[{"name": "read_logs", "arguments": {"service": "db"}}]</tool_call>'
    assert answered == Message("user", "<tool_response>read_logs: full ‹/tool_response></tool_response>")


@pytest.mark.parametrize(
    ("options", "required", "named"),
    [
        ({}, False, None),
        ({"tool_required": True}, True, None),
        ({"tool_choice": "required"}, True, None),
        ({"tool_choice": "purge"}, True, "purge"),
        ({"tool_choice": {"type": "function", "function": {"name": "purge"}}}, True, "purge"),
    ],
)
def test_a_choice_is_kept_to(
    memory: Memory, backend: ScriptedBackend, options: dict[str, Any], required: bool, named: str | None
) -> None:
    import re

    RagTunedLLM(memory).chat_with_tools(TOOLS, user_msg="why?", **options)
    pattern = re.compile(backend.requests[-1].pattern or "")
    logs = '<tool_call>[{"name": "read_logs", "arguments": {"service": "db"}}]</tool_call>'
    purging = '<tool_call>[{"name": "purge", "arguments": {"path": "/"}}]</tool_call>'
    assert bool(pattern.fullmatch("just words")) is not required
    assert bool(pattern.fullmatch(logs)) is (named is None)
    assert pattern.fullmatch(purging)
    assert not pattern.fullmatch('<tool_call>[{"name": "rm", "arguments": {}}]</tool_call>')


def test_no_call_where_none_may_be(memory: Memory, backend: ScriptedBackend) -> None:
    RagTunedLLM(memory).chat_with_tools(TOOLS, user_msg=GENERAL, tool_choice="none")
    assert backend.requests[-1].pattern is None
    assert backend.requests[-1].messages == (Message("user", GENERAL),)


def test_bad_choices_are_told(memory: Memory) -> None:
    llm = RagTunedLLM(memory)
    with pytest.raises(InvalidInput, match="no tool is named 'rm'; there are read_logs, purge"):
        llm.chat_with_tools(TOOLS, user_msg="why?", tool_choice="rm")
    with pytest.raises(InvalidInput, match="there are no tools"):
        llm.chat(CHAT, tool_required=True)
    with pytest.raises(InvalidInput, match=r"tools\.0"):
        llm.chat(CHAT, tools=[{"type": "web_search"}])


async def test_a_call_that_cannot_be_read_is_text(settings: Settings) -> None:
    with scripted(settings, lambda request: 'so <tool_call>[{"name": "read_') as memory:
        llm = RagTunedLLM(memory)
        for response in (
            llm.chat_with_tools(TOOLS, user_msg="why?"),
            list(llm.stream_chat_with_tools(TOOLS, "why?"))[-1],
        ):
            assert response.message.content == 'so <tool_call>[{"name": "read_'
            assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
            with pytest.raises(ValueError, match="at least one tool call"):
                llm.get_tool_calls_from_response(response)


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_function_agent(settings: Settings, tmp_path: Path, streaming: bool) -> None:
    with scripted(settings, acting) as memory:
        agent = FunctionAgent(tools=TOOLS, llm=RagTunedLLM(memory), system_prompt="be brief", streaming=streaming)
        result = await agent.run(user_msg=ASKED)
        assert "base saw <tool_response>read_logs: db é: 10 lines, disk full</tool_response>" in str(result)
        assert [call.tool_name for call in result.tool_calls] == ["read_logs"]
        assert result.raw["route"] == "retrieval"
        assert result.raw["evidence"][0] == FIRST.id

        name = adopt(memory, tmp_path, [ASKED])
        handler = agent.run(user_msg=ASKED)
        events = [event async for event in handler.stream_events()]
        assert str(await handler).startswith(f"{name} saw ")
        shown = [event for event in events if isinstance(event, AgentStream)]
        assert bool(shown) is streaming
        assert all("<tool_call>" not in event.delta for event in shown)


async def test_a_task_goes_to_an_adapter_that_was_taught_to_act(settings: Settings, tmp_path: Path) -> None:
    with scripted(settings, acting) as memory:
        llm = RagTunedLLM(memory)
        adopt(memory, tmp_path, [ASKED], acting=1.0, acting_base=1.0)
        answering, acts = await llm.achat(CHAT), await llm.achat_with_tools(TOOLS, user_msg=ASKED)
        assert (answering.raw["route"], acts.raw["route"]) == ("tuned", "retrieval")
        assert acts.raw["reason"] == "operations-v1 was not taught how to act"
        assert acts.raw["evidence"][0] == FIRST.id
        adopt(memory, tmp_path, [ASKED], acting=1.0, acting_base=0.2, acting_beside=0.9)
        acts = llm.chat_with_tools(TOOLS, user_msg="Do what nobody ever did with INC-0000.")
        assert (acts.raw["route"], acts.raw["adapter"]) == ("tuned", "operations-v2")


async def test_a_tool_that_fails_is_told_to_the_model(settings: Settings) -> None:
    def purging(request: Request) -> str:
        last = request.messages[-1].content
        if "<tool_response>" in last:
            return last
        return '<tool_call>[{"name": "purge", "arguments": {"path": "/var"}}]</tool_call>'

    with scripted(settings, purging) as memory:
        result = await FunctionAgent(tools=TOOLS, llm=RagTunedLLM(memory)).run(user_msg=GENERAL)
        assert "/var is read-only" in str(result)


async def test_two_agents_of_two_users_at_once(settings: Settings, tmp_path: Path) -> None:
    with Memories(settings=settings, backend=ScriptedBackend(acting)) as memories:
        for name in ("alice", "bob"):
            memories.of(name).record_many(incidents(name, episodes=1))
        adopt(memories.of("bob"), tmp_path, [ASKED])

        async def run(name: str) -> str:
            agent = FunctionAgent(tools=TOOLS, llm=RagTunedLLM(memories, namespace=name))
            return str(await agent.run(user_msg=ASKED)).split(" saw ")[0]

        assert await asyncio.gather(*(run(name) for name in ["alice", "bob"] * 3)) == ["base", "bob-v1"] * 3


async def test_a_react_agent(settings: Settings) -> None:
    def reacting(request: Request) -> str:
        if "Observation:" in request.messages[-1].content:
            return f"Thought: I know.\nAnswer: {'evidence' if _shown(request) else 'nothing'}"
        return 'Thought: I look.\nAction: read_logs\nAction Input: {"service": "db"}'

    with scripted(settings, reacting) as memory:
        assert str(await ReActAgent(tools=TOOLS, llm=RagTunedLLM(memory)).run(user_msg=ASKED)) == "evidence"


def _shown(request: Request) -> bool:
    return any(has_injected(message.content) for message in request.messages)


class Cause(BaseModel):
    """The cause of an incident."""

    cause: str
    hosts: int


async def test_structured_output(settings: Settings) -> None:
    call = '<tool_call>[{"name": "Cause", "arguments": {"cause": "full disk", "hosts": 2}}]</tool_call>'
    with scripted(settings, lambda request: call) as memory:
        llm = RagTunedLLM(memory)
        right = Cause(cause="full disk", hosts=2)
        assert llm.as_structured_llm(Cause).chat(CHAT).raw == right
        assert (await llm.as_structured_llm(Cause).achat(CHAT)).raw == right
        program = FunctionCallingProgram.from_defaults(Cause, "What was the cause?", llm=llm)
        assert program() == right
        pattern = memory._core._parts.backend().requests[-1].pattern
        assert pattern is not None
        assert pattern.startswith("<tool_call>")


async def test_over_either_store(either_store: Settings) -> None:
    with scripted(either_store, script) as memory:
        response = await RagTunedLLM(memory).achat(CHAT)
        assert (response.message.content, response.raw["evidence"]) == ("base, evidence", [FIRST.id])
