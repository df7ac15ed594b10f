"""Beside other middleware, with streams, commands, sub-agents and models that repeat their ids."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelCallLimitMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
    hook_config,
)
from langchain.agents.structured_output import ToolStrategy
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import BaseModel
from scripted_agent import Flavour, ScriptedChat, calls, episodes, run, script, thread, told

from langchain_rag_tuned_memory import RagTunedMemoryMiddleware
from rag_tuned_memory import Memory

pytestmark = pytest.mark.parametrize("flavour", ["sync", "async"])


def look(at: str) -> str:
    """Look at something."""
    return f"the {at} is full"


@pytest.mark.parametrize("first", [True, False])
async def test_summaries_lose_no_step_and_are_none(memory: Memory, flavour: Flavour, first: bool) -> None:
    """The history is rewritten before each model call, the question of the turn included."""
    turns = 6

    def answer(messages: Any) -> Any:
        done = sum(isinstance(one, ToolMessage) for one in model.prompts[-1])
        asked.append(done)
        number = len(asked)
        if number == turns:
            return "done"
        return calls(("look", {"at": f"part {number}"}, f"c{number}"), text=f"looking {number}")

    asked: list[int] = []
    memory.record({"steps": [{"kind": "message", "text": "orion: look at each part"}]})
    model = ScriptedChat(answer=answer)
    summary = SummarizationMiddleware(
        model=script(*["the summary of what was done"] * turns), trigger=("messages", 4), keep=("messages", 2)
    )
    own = RagTunedMemoryMiddleware(memory)
    agent = create_agent(
        model, [look], middleware=[own, summary] if first else [summary, own], checkpointer=InMemorySaver()
    )
    result = await run(agent, flavour, "check orion", config=thread())
    assert not any(one.text == "check orion" for one in result["messages"]), "it was not summarised at all"
    (episode,) = episodes(memory)
    numbers = range(1, turns)
    assert told(episode) == [
        "message user: check orion",
        *(
            line
            for number in numbers
            for line in (
                f"message assistant: looking {number}",
                f'tool_call c{number}: look({{"at": "part {number}"}})',
                f"tool_result c{number}: the part {number} is full",
            )
        ),
        "message assistant: done",
    ]
    assert len(set(model.injected)) == 1
    assert "look at each part" in model.injected[0]


async def test_what_is_redacted_is_stored_redacted(memory: Memory, flavour: Flavour) -> None:
    redact = PIIMiddleware("email", strategy="redact", apply_to_input=True, apply_to_output=True)
    model = script(calls(("look", {"at": "disk"}, "c1"), text="ask bob@example.com"), "mail bob@example.com")
    agent = create_agent(model, [look], middleware=[RagTunedMemoryMiddleware(memory), redact])
    await run(agent, flavour, "my address is alice@example.com")
    (episode,) = episodes(memory)
    assert "example.com" not in episode.model_dump_json()
    assert "REDACTED_EMAIL" in episode.goal


async def test_ids_that_a_model_repeats_are_told_apart(memory: Memory, flavour: Flavour) -> None:
    model = script(
        calls(("look", {"at": "disk"}, "call_0"), ("look", {"at": "fan"}, "call_1")),
        calls(("look", {"at": "rack"}, "call_0")),
        "done",
    )
    agent = create_agent(model, [look], middleware=[RagTunedMemoryMiddleware(memory)], checkpointer=InMemorySaver())
    await run(agent, flavour, "check orion", config=thread())
    (episode,) = episodes(memory)
    assert told(episode)[1:-1] == [
        'tool_call call_0: look({"at": "disk"})',
        'tool_call call_1: look({"at": "fan"})',
        "tool_result call_0: the disk is full",
        "tool_result call_1: the fan is full",
        'tool_call call_0#2: look({"at": "rack"})',
        "tool_result call_0#2: the rack is full",
    ]


async def test_parallel_tools_stand_in_the_order_of_their_calls(memory: Memory, flavour: Flavour) -> None:
    async def wait(seconds: float) -> str:
        """Wait."""
        await asyncio.sleep(seconds)
        return f"waited {seconds}"

    def wait_sync(seconds: float) -> str:
        """Wait."""
        import time

        time.sleep(seconds)
        return f"waited {seconds}"

    wait_sync.__name__ = "wait"
    times = [0.3, 0.2, 0.1, 0.0]
    model = script(calls(*(("wait", {"seconds": one}, f"c{one}") for one in times)), "done")
    tools: list[Any] = [wait if flavour == "async" else wait_sync]
    agent = create_agent(model, tools, middleware=[RagTunedMemoryMiddleware(memory)])
    await run(agent, flavour, "wait")
    (episode,) = episodes(memory)
    results = [step.text for step in episode.steps if step.kind == "tool_result"]
    assert results == [f"waited {one}" for one in times]


async def test_streams_are_recorded_whole(memory: Memory, flavour: Flavour) -> None:
    model = script(calls(("look", {"at": "disk"}, "c1"), text="I will look"), "the disk is full indeed")
    agent = create_agent(model, [look], middleware=[RagTunedMemoryMiddleware(memory)])
    given: Any = {"messages": [("user", "check orion")]}
    if flavour == "async":
        pieces = [one async for one in agent.astream(given, stream_mode="messages")]
    else:
        pieces = list(agent.stream(given, stream_mode="messages"))
    assert sum("the" in str(piece[0].text) for piece in pieces) >= 1
    assert len(pieces) > 6, "it was not streamed"
    (episode,) = episodes(memory)
    assert [line.strip() for line in told(episode)] == [
        "message user: check orion",
        "message assistant: I will look",
        'tool_call c1: look({"at": "disk"})',
        "tool_result c1: the disk is full",
        "message assistant: the disk is full indeed",
    ]


async def test_a_stream_that_is_left_is_stored_at_the_latest_at_the_end(memory: Memory, flavour: Flavour) -> None:
    own = RagTunedMemoryMiddleware(memory)
    model = script(calls(("look", {"at": "disk"}, "c1")), "never heard")
    agent = create_agent(model, [look], middleware=[own])
    given: Any = {"messages": [("user", "check orion")]}
    if flavour == "async":
        stream = agent.astream(given, stream_mode="updates")
        async for update in stream:
            if "tools" in update:
                break
        await stream.aclose()  # type: ignore[attr-defined]
    else:
        for update in agent.stream(given, stream_mode="updates"):
            if "tools" in update:
                break
    own.close()
    (episode,) = episodes(memory)
    assert told(episode)[:3] == [
        "message user: check orion",
        'tool_call c1: look({"at": "disk"})',
        "tool_result c1: the disk is full",
    ]


@pytest.mark.parametrize("first", [True, False])
async def test_a_guard_that_ends_the_turn_before_it_begins(memory: Memory, flavour: Flavour, first: bool) -> None:
    class Guard(AgentMiddleware[Any, Any, Any]):
        @hook_config(can_jump_to=["end"])
        def before_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:
            if "bomb" not in str(state["messages"][-1].text):
                return None
            return {"messages": [AIMessage("I will not.")], "jump_to": "end"}

        @hook_config(can_jump_to=["end"])
        async def abefore_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:
            return self.before_agent(state, runtime)

    own = RagTunedMemoryMiddleware(memory)
    agent = create_agent(
        script("hello"), middleware=[own, Guard()] if first else [Guard(), own], checkpointer=InMemorySaver()
    )
    await run(agent, flavour, "hello", config=thread())
    await run(agent, flavour, "build a bomb", config=thread())
    assert [told(one) for one in episodes(memory)] == [
        ["message user: hello", "message assistant: hello"],
        ["message user: build a bomb", "message assistant: I will not."],
    ]


async def test_messages_that_other_middleware_adds(memory: Memory, flavour: Flavour) -> None:
    limit = ModelCallLimitMiddleware(run_limit=1, exit_behavior="end")
    model = script(calls(("look", {"at": "disk"}, "c1")))
    agent = create_agent(model, [look], middleware=[RagTunedMemoryMiddleware(memory), limit])
    await run(agent, flavour, "check orion")
    (episode,) = episodes(memory)
    assert told(episode)[2] == "tool_result c1: the disk is full"
    assert "limit" in told(episode)[3]


async def test_a_model_that_is_not_asked_at_all(memory: Memory, flavour: Flavour) -> None:
    """An inner middleware answers by itself, with a message that has no id yet."""

    class Answers(AgentMiddleware[Any, Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return AIMessage("from a cache")

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            return AIMessage("from a cache")

    agent = create_agent(script(), middleware=[RagTunedMemoryMiddleware(memory), Answers()])
    result = await run(agent, flavour, "check orion")
    (episode,) = episodes(memory)
    assert told(episode) == ["message user: check orion", "message assistant: from a cache"]
    assert result["messages"][-1].id == episode.steps[-1].ref


async def test_tools_that_return_commands(memory: Memory, flavour: Flavour) -> None:
    def note(text: str, runtime: ToolRuntime) -> Command[Any]:
        """Writes into the state."""
        message = ToolMessage(f"noted {text}", tool_call_id=runtime.tool_call_id)
        return Command(update={"messages": [message]})

    agent = create_agent(
        script(calls(("note", {"text": "disk"}, "c1")), "done"), [note], middleware=[RagTunedMemoryMiddleware(memory)]
    )
    await run(agent, flavour, "check orion")
    (episode,) = episodes(memory)
    assert told(episode)[1:] == [
        'tool_call c1: note({"text": "disk"})',
        "tool_result c1: noted disk",
        "message assistant: done",
    ]
    assert episode.steps[2].tool == "note"


async def test_structured_answers(memory: Memory, flavour: Flavour) -> None:
    class Verdict(BaseModel):
        """What is wrong."""

        cause: str

    model = script(calls(("Verdict", {"cause": "disk"}, "c1")))
    agent = create_agent(
        model, [look], response_format=ToolStrategy(Verdict), middleware=[RagTunedMemoryMiddleware(memory)]
    )
    result = await run(agent, flavour, "check orion")
    assert result["structured_response"] == Verdict(cause="disk")
    (episode,) = episodes(memory)
    assert told(episode)[1] == 'tool_call c1: Verdict({"cause": "disk"})'
    assert told(episode)[2].startswith("tool_result c1: Returning structured response")


async def test_a_sub_agent_with_the_same_memory(memory: Memory, flavour: Flavour) -> None:
    """Its runs are episodes of their own; the outer one is not torn."""
    own = RagTunedMemoryMiddleware(memory)
    inner = create_agent(script(calls(("look", {"at": "disk"}, "c1")), "inner done"), [look], middleware=[own])

    def ask_expert(question: str) -> str:
        """Ask another agent."""
        return str(inner.invoke({"messages": [("user", question)]})["messages"][-1].text)

    async def ask_expert_async(question: str) -> str:
        """Ask another agent."""
        return str((await inner.ainvoke({"messages": [("user", question)]}))["messages"][-1].text)

    ask_expert_async.__name__ = "ask_expert"
    tools: list[Any] = [ask_expert_async if flavour == "async" else ask_expert]
    model = script(calls(("ask_expert", {"question": "which disk?"}, "c1")), "outer done")
    outer = create_agent(model, tools, middleware=[own], checkpointer=InMemorySaver())
    await run(outer, flavour, "check orion", config=thread())
    found = {one.goal: told(one) for one in episodes(memory)}
    assert found["which disk?"][1:] == [
        'tool_call c1: look({"at": "disk"})',
        "tool_result c1: the disk is full",
        "message assistant: inner done",
    ]
    assert found["check orion"][1:] == [
        'tool_call c1: ask_expert({"question": "which disk?"})',
        "tool_result c1: inner done",
        "message assistant: outer done",
    ]


async def test_what_is_no_text_is_named(memory: Memory, flavour: Flavour) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    thinking = AIMessage([{"type": "reasoning", "reasoning": "it is a disk"}, {"type": "text", "text": "a disk"}])
    agent = create_agent(script(thinking), middleware=[RagTunedMemoryMiddleware(memory)])
    message = HumanMessage([{"type": "text", "text": "what is this?"}, picture])
    await run(agent, flavour, {"messages": [message]})
    (episode,) = episodes(memory)
    assert told(episode) == [
        "message user: what is this?\n[image_url]",
        "thought assistant: it is a disk",
        "message assistant: a disk",
    ]


async def test_calls_that_are_no_valid_json(memory: Memory, flavour: Flavour) -> None:
    bad = AIMessage(
        "",
        invalid_tool_calls=[{"type": "invalid_tool_call", "name": "look", "args": "{at:", "id": "c1", "error": "no"}],
    )
    agent = create_agent(script(bad, "sorry"), [look], middleware=[RagTunedMemoryMiddleware(memory)])
    await run(agent, flavour, "check orion")
    (episode,) = episodes(memory)
    assert told(episode)[1].startswith('tool_call c1: look({"input": "{at:"}) !')
