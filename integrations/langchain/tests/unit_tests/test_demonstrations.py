"""Runs that went well, shown as turns: which, in which order, and what is left out."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import tool
from scripted_agent import Flavour, ScriptedChat, calls, episodes, run, script, told

from langchain_rag_tuned_memory import RagTunedDemonstrations, RagTunedMemoryMiddleware
from rag_tuned_memory import Filter, Memories, Memory
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace, StoreUnavailable, TrajectoryNotFound

pytestmark = pytest.mark.parametrize("flavour", ["sync", "async"])


@tool
def purge(host: str) -> str:
    """Purge the logs of a host."""
    return f"{host} has room"


@tool
def look(host: str) -> str:
    """Look at a host."""
    return f"the disk of {host} is full" if host.startswith("db") else f"the cache of {host} is stale"


def call(name: str, call_id: str, **arguments: Any) -> dict[str, Any]:
    return {"kind": "tool_call", "tool": name, "call_id": call_id, "arguments": arguments}


def result(name: str, call_id: str, text: str, error: str | None = None) -> dict[str, Any]:
    return {"kind": "tool_result", "tool": name, "call_id": call_id, "text": text, "error": error}


def done(goal: str, *steps: dict[str, Any], success: bool | None = True, source: str = "test") -> dict[str, Any]:
    asked = {"kind": "message", "actor": "user", "text": goal}
    answer = {"kind": "message", "actor": "assistant", "text": "Done."}
    return {"goal": goal, "steps": [asked, *steps, answer], "outcome": {"success": success}, "source": source}


FREED = done("free db-1", call("purge", "1", host="db-1"), result("purge", "1", "db-1 has room"))


def shown(model: ScriptedChat, place: int = 0) -> list[str]:
    """The messages of a call before its own question, in a line each."""
    return [line(one) for one in model.prompts[place] if one.type != "system"]


def line(message: BaseMessage) -> str:
    asked = message.tool_calls if isinstance(message, AIMessage) else []
    return f"{message.type}: {message.text}{''.join(one['name'] + str(one['args']) for one in asked)}"


async def test_a_run_is_shown_as_turns_before_the_conversation_and_recorded_nowhere(
    memory: Memory, flavour: Flavour
) -> None:
    memory.record(FREED)
    model = script(calls(("purge", {"host": "db-2"}, "c1")), "It is free.")
    both = [RagTunedMemoryMiddleware(memory, mode="record"), RagTunedDemonstrations(memory, on_error="raise")]
    state = await run(create_agent(model, [purge], middleware=both), flavour, "free db-2")
    assert shown(model) == [
        "human: free db-1",
        "ai: purge{'host': 'db-1'}",
        "tool: db-1 has room",
        "ai: Done.",
        "human: free db-2",
    ]
    assert shown(model, 1)[:5] == shown(model)
    prompt = model.prompts[0]
    assert prompt[1].tool_calls[0]["id"] == prompt[2].tool_call_id  # type: ignore[union-attr, attr-defined]
    assert len(state["messages"]) == 4
    (own,) = episodes(memory)
    assert told(own)[0] == "message user: free db-2"
    assert len(own.steps) == 4


@pytest.mark.parametrize(
    "other",
    [
        done("free db-1", call("purge", "1", host="db-1"), result("purge", "1", "ok"), success=False),
        done("free db-1", call("purge", "1", host="db-1"), result("purge", "1", "ok"), success=None),
        done("free db-1", call("purge", "1", host="db-1"), result("purge", "1", "", error="read-only")),
        done("free db-1", call("drop", "1", host="db-1"), result("drop", "1", "ok")),
        done("free db-1", call("purge", "1", host="db-1")),
        done("free db-1"),
        done("free db-1", call("purge", "1", host="x" * 9000), result("purge", "1", "ok")),
    ],
    ids=["failed", "unknown", "error", "other tools", "no result", "no call", "too long"],
)
async def test_what_is_no_example_is_not_shown(memory: Memory, flavour: Flavour, other: dict[str, Any]) -> None:
    memory.record(other)
    model = script("hm")
    shows = RagTunedDemonstrations(memory, on_error="raise")
    await run(create_agent(model, [purge], middleware=[shows]), flavour, "free db-2")
    assert shown(model) == ["human: free db-2"]


async def test_what_was_asked_before_is_shown_unless_it_is_a_turn_of_this_conversation(
    memory: Memory, flavour: Flavour
) -> None:
    memory.record(FREED)
    agent = create_agent(model := script("hm", "hm"), [purge], middleware=[RagTunedDemonstrations(memory)])
    await run(agent, flavour, "free db-1")
    assert len(shown(model)) == 5
    await run(agent, flavour, {"messages": [("user", "free db-1"), ("ai", "Done."), ("user", "and db-2?")]})
    assert len(shown(model, 1)) == 3


async def test_what_a_tool_said_last_chooses_the_runs(memory: Memory, flavour: Flavour) -> None:
    for host in ("db-7", "web-7"):
        seen = look.invoke({"host": host})
        found = result("look", "1", seen)
        fixed = (call("purge", "2", host=host), result("purge", "2", f"{seen} no more"))
        memory.record(done(f"mend {host}", call("look", "1", host=host), found, *fixed))
    for host, like in (("db-2", "db-7"), ("web-2", "web-7")):
        model = script(calls(("look", {"host": host}, "c1")), "hm")
        shows = RagTunedDemonstrations(memory, k=1, on_error="raise")
        await run(create_agent(model, [look, purge], middleware=[shows]), flavour, "mend it")
        assert shown(model, 1)[0] == f"human: mend {like}"


async def test_at_most_k_the_best_last_of_the_sources_that_are_trusted(memory: Memory, flavour: Flavour) -> None:
    for host in ("db-1", "db-2", "db-3"):
        source = "stranger" if host == "db-2" else "own"
        steps = (call("purge", "1", host=host), result("purge", "1", "ok"))
        memory.record(done(f"free the disk of {host}", *steps, source=source))
    model = script("hm")
    shows = RagTunedDemonstrations(memory, k=2, where=Filter(source="own"), on_error="raise")
    await run(create_agent(model, [purge], middleware=[shows]), flavour, "free the disk of db-3 again")
    goals = [one for one in shown(model) if one.startswith("human")]
    assert goals == [
        "human: free the disk of db-1",
        "human: free the disk of db-3",
        "human: free the disk of db-3 again",
    ]


async def test_each_user_is_shown_own_runs(memories: Memories, flavour: Flavour) -> None:
    memories.of("alice").record(FREED)
    shows = RagTunedDemonstrations(memories, on_error="raise")
    for user, lines in (("alice", 5), ("bob", 1)):
        model = script("hm")
        agent = create_agent(model, [purge], middleware=[shows])
        await run(agent, flavour, "free db-2", config={"configurable": {"namespace": user}})
        assert len(shown(model)) == lines
    with pytest.raises(InvalidNamespace):
        await run(create_agent(script("hm"), [purge], middleware=[shows]), flavour, "free db-2")


@pytest.mark.parametrize("error", [TrajectoryNotFound("it was forgotten meanwhile"), StoreUnavailable("it is down")])
async def test_the_agent_goes_on_where_the_memory_fails(
    memory: Memory,
    flavour: Flavour,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    memory.record(FREED)

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(Memory, "get", fails)
    monkeypatch.setattr(Memory, "aget", fails)
    down = isinstance(error, StoreUnavailable)
    model = script("hm")
    with caplog.at_level(logging.WARNING):
        shows = RagTunedDemonstrations(memory)
        await run(create_agent(model, [purge], middleware=[shows]), flavour, "free db-2")
    assert shown(model) == ["human: free db-2"]
    assert ("find runs to show" in caplog.text) == down
    strict = create_agent(model, [purge], middleware=[RagTunedDemonstrations(memory, on_error="raise")])
    if down:
        with pytest.raises(StoreUnavailable):
            await run(strict, flavour, "free db-2")


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": True}, {"token_budget": 0}, {"on_error": "ignore"}])
async def test_wrong_arguments_are_named(memory: Memory, flavour: Flavour, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        RagTunedDemonstrations(memory, **wrong)
