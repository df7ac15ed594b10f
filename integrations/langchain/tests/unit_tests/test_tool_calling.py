"""Tools bound to the chat model: how it is told, what it may say, and what is read from its answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from obedient import obey
from pydantic import BaseModel

from incidents import episode
from langchain_rag_tuned_memory import ChatRagTuned
from rag_tuned_memory import Memory, Settings
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.recall.prompt import OPENING
from rag_tuned_memory.serving.base import Request
from rag_tuned_memory.serving.scripted import ScriptedBackend


@tool
def read_logs(service: str, lines: int = 10) -> str:
    """Read the last lines of a service's log."""
    return f"{service}: all is well"


@tool
def restart(service: str, how: Literal["hard", "soft"]) -> str:
    """Restart a service."""
    return f"{service} was restarted"


class Verdict(BaseModel):
    """What became of it."""

    cause: str
    solved: bool


Open = Callable[[Callable[[Request], str]], ChatRagTuned]


@pytest.fixture
def model_that(settings: Settings) -> Iterator[Open]:
    opened: list[Memory] = []

    def make(answer: Callable[[Request], str]) -> ChatRagTuned:
        opened.append(Memory("operations", settings=settings, backend=ScriptedBackend(answer)))
        return ChatRagTuned(memory=opened[-1], model="base")

    yield make
    for memory in opened:
        memory.close()


def asked(model: ChatRagTuned) -> list[Request]:
    requests: list[Request] = model.memory._core._parts.backend().requests  # type: ignore[union-attr]
    return requests


def streamed(model: Any, messages: Any) -> tuple[list[str], AIMessageChunk]:
    chunks = list(model.stream(messages))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return [str(chunk.content) for chunk in chunks], whole


def test_the_model_is_told_of_the_tools_in_the_system_message(model_that: Open) -> None:
    model = model_that(obey)
    model.bind_tools([read_logs, restart]).invoke("read_logs of 'api'")
    told = asked(model)[-1].messages[0]
    assert told.role == "system"
    assert "- read_logs(service: string, lines?: integer): Read the last lines of a service's log." in told.content
    assert '- restart(service: string, how: "hard" | "soft"): Restart a service.' in told.content


def test_calls_and_results_go_back_in_the_form_of_training(model_that: Open) -> None:
    model = model_that(obey)
    call = {"name": "read_logs", "args": {"service": "api"}, "id": "c1", "type": "tool_call"}
    model.bind_tools([read_logs]).invoke(
        [HumanMessage("look"), AIMessage("Looking.", tool_calls=[call]), ToolMessage("down", tool_call_id="c1")]
    )
    _, *rest = asked(model)[-1].messages
    assert [(one.role, one.content) for one in rest] == [
        ("user", "look"),
        ("assistant", 'Looking.\n<tool_call>[{"name": "read_logs", "arguments": {"service": "api"}}]</tool_call>'),
        ("user", "<tool_response>read_logs: down</tool_response>"),
    ]


@pytest.mark.parametrize(
    ("choice", "words", "calls"),
    [
        (None, True, {"read_logs", "restart"}),
        ("auto", True, {"read_logs", "restart"}),
        ("any", False, {"read_logs", "restart"}),
        ("required", False, {"read_logs", "restart"}),
        (True, False, {"read_logs", "restart"}),
        ("restart", False, {"restart"}),
        ({"type": "function", "function": {"name": "restart"}}, False, {"restart"}),
    ],
)
def test_a_choice_says_what_may_be_answered(model_that: Open, choice: Any, words: bool, calls: set[str]) -> None:
    model = model_that(obey)
    model.bind_tools([read_logs, restart], tool_choice=choice).invoke("x")
    held_to = asked(model)[-1].pattern
    assert held_to is not None
    arguments = {"read_logs": '{"service": "a"}', "restart": '{"service": "a", "how": "soft"}'}
    allowed = {
        name
        for name, given in arguments.items()
        if re.fullmatch(held_to, f'<tool_call>[{{"name": "{name}", "arguments": {given}}}]</tool_call>')
    }
    assert (allowed, bool(re.fullmatch(held_to, "just words"))) == (calls, words)


@pytest.mark.parametrize("choice", ["none", False])
def test_none_hides_the_tools(model_that: Open, choice: Any) -> None:
    model = model_that(obey)
    message = model.bind_tools([restart], tool_choice=choice).invoke("restart it")
    assert message.tool_calls == []
    assert (asked(model)[-1].pattern, asked(model)[-1].messages[0].role) == (None, "user")


def test_several_calls_at_once_unless_forbidden(model_that: Open) -> None:
    two = '<tool_call>[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]</tool_call>'
    model = model_that(lambda request: two)

    def f() -> None:
        """Do it."""

    message = model.bind_tools([f]).invoke("x")
    assert [call["name"] for call in message.tool_calls] == ["f", "f"]
    assert len({call["id"] for call in message.tool_calls}) == 2
    assert message.response_metadata["finish_reason"] == "tool_calls"
    assert re.fullmatch(str(asked(model)[-1].pattern), two)
    model.bind_tools([f], parallel_tool_calls=False).invoke("x")
    assert not re.fullmatch(str(asked(model)[-1].pattern), two)


def test_words_before_a_call_are_streamed_and_the_call_comes_whole(model_that: Open) -> None:
    said = 'Let me look.\n<tool_call>[{"name": "restart", "arguments": {"service": "api", "how": "soft"}}]</tool_call>'
    bound = model_that(lambda request: said).bind_tools([restart])
    pieces, whole = streamed(bound, "x")
    assert "".join(pieces).strip() == "Let me look."
    assert len(pieces) > 3
    assert all("<" not in piece for piece in pieces)
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [
        ("restart", {"service": "api", "how": "soft"})
    ]
    assert whole.invalid_tool_calls == []
    assert bound.invoke("x").content == "Let me look."


@pytest.mark.parametrize("written", ['{"name": "restart", "argu', '{"nam": "restart"}', "[1]", '"restart"', ""])
def test_a_call_that_cannot_be_read_is_told_as_one(model_that: Open, written: str) -> None:
    bound = model_that(lambda request: f"Well.\n<tool_call>{written}").bind_tools([restart])
    for message in (bound.invoke("x"), streamed(bound, "x")[1]):
        assert message.tool_calls == []
        assert [one["args"] for one in message.invalid_tool_calls] == [f"<tool_call>{written}"]
        assert str(message.content).strip() == "Well."


def test_without_tools_the_mark_of_a_call_is_only_text(model_that: Open) -> None:
    model = model_that(lambda request: "<tool_call> is a mark")
    assert model.invoke("x").content == streamed(model, "x")[1].content == "<tool_call> is a mark"


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([{"type": "web_search_preview"}], None, r"tools\.0: .*web_search_preview"),
        ([restart], "reboot", "no tool 'reboot'. There are: restart"),
        ([restart], {"type": "function"}, "names no tool"),
        ([], "any", "there are no tools"),
    ],
)
def test_what_cannot_be_bound_is_refused_when_binding(
    model_that: Open, tools: list[Any], choice: Any, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        model_that(obey).bind_tools(tools, tool_choice=choice)


def test_structured_output(model_that: Open) -> None:
    model = model_that(obey)
    chain = model.with_structured_output(Verdict)
    wanted = Verdict(cause="the disk", solved=True)
    assert chain.invoke("it was 'the disk'") == wanted
    assert asyncio.run(chain.ainvoke("it was 'the disk'")) == wanted
    raw = model.with_structured_output(Verdict, include_raw=True).invoke("it was 'the disk'")
    assert (raw["parsed"], raw["parsing_error"]) == (wanted, None)
    assert model.with_structured_output(Verdict.model_json_schema()).invoke("it was 'x'") == {
        "cause": "x",
        "solved": True,
    }


def test_nested_schemas_are_held_to_their_types(model_that: Open) -> None:
    class Host(BaseModel):
        name: str
        port: int

    class Found(BaseModel):
        """Found."""

        hosts: list[Host]
        first: Host | None = None

    good = '{"hosts": [{"name": "a", "port": 1}, {"name": "b", "port": 2}], "first": {"name": "a", "port": 1}}'
    call = f'<tool_call>[{{"name": "Found", "arguments": {good}}}]</tool_call>'
    model = model_that(lambda request: call)
    found: Any = model.with_structured_output(Found).invoke("x")
    assert [host.port for host in found.hosts] == [1, 2]
    held_to = str(asked(model)[-1].pattern)
    assert re.fullmatch(held_to, call)
    assert not re.fullmatch(held_to, call.replace('"port": 2', '"port": "two"'))


def test_an_endpoint_that_cannot_hold_answers_is_read_all_the_same(settings: Settings) -> None:
    call = '<tool_call>[{"name": "restart", "arguments": {"service": "api", "how": "soft"}}]</tool_call>'
    backend = ScriptedBackend(lambda request: call)
    endpoint = settings.model_copy(update={"backend": "openai+https://host/v1"})
    with Memory("operations", settings=endpoint, backend=backend) as memory:
        bound = ChatRagTuned(memory=memory, model="base").bind_tools([restart])
        assert bound.invoke("x").tool_calls[0]["args"]["service"] == "api"
    assert backend.requests[-1].pattern is None


class TestAgents:
    QUESTION = "restart 'api' now"

    def test_an_agent_calls_and_ends(self, model_that: Open) -> None:
        agent = create_agent(model_that(obey), [read_logs, restart])
        for state in (
            agent.invoke({"messages": [HumanMessage(self.QUESTION)]}),
            asyncio.run(agent.ainvoke({"messages": [HumanMessage(self.QUESTION)]})),
        ):
            _, call, done, last = state["messages"]
            assert call.tool_calls[0]["args"] == {"service": "api", "how": "hard"}
            assert done.content == "api was restarted"
            assert last.content == "That is done."

    def test_middleware_chooses_the_model_of_a_call(self, model_that: Open) -> None:
        @wrap_model_call
        def base(request: Any, handler: Any) -> Any:
            return handler(request.override(model_settings={"model": "base", "max_tokens": 77}))

        model = model_that(obey)
        model.model = "route"
        create_agent(model, [restart], middleware=[base]).invoke({"messages": [HumanMessage(self.QUESTION)]})
        assert {request.max_new_tokens for request in asked(model)} == {77}

    def test_its_structured_response(self, model_that: Open) -> None:
        agent = create_agent(model_that(obey), [], response_format=ToolStrategy(Verdict))
        state = agent.invoke({"messages": [HumanMessage("it was 'the disk'")]})
        assert state["structured_response"] == Verdict(cause="the disk", solved=True)

    def test_by_route_it_reads_what_was_recorded_and_may_act_where_nothing_was(self, model_that: Open) -> None:
        model = model_that(obey)
        model.model = "route"
        assert isinstance(model.memory, Memory)
        model.memory.record(episode())
        agent = create_agent(model, [restart], system_prompt="You keep services up.")
        agent.invoke({"messages": [HumanMessage("which disk is full? restart 'db-1'")]})
        system = asked(model)[0].messages[0].content
        told, own, fence = (system.index(part) for part in ("- restart(", "You keep services up.", OPENING))
        assert told < own < fence
        before = len(asked(model))
        state = agent.invoke({"messages": [HumanMessage("what did we do about INC-9999? restart 'x'")]})
        assert state["messages"][1].tool_calls
        assert state["messages"][1].response_metadata["route"] == "retrieval"
        assert all(OPENING not in request.messages[0].content for request in asked(model)[before:])

    def test_streamed(self, model_that: Open) -> None:
        agent = create_agent(model_that(obey), [restart])
        chunks = list(agent.stream({"messages": [HumanMessage(self.QUESTION)]}, stream_mode="messages"))
        text = "".join(str(one.content) for one, _ in chunks if isinstance(one, AIMessageChunk))
        assert text == "That is done."
        assert any(one.tool_call_chunks for one, _ in chunks if isinstance(one, AIMessageChunk))
