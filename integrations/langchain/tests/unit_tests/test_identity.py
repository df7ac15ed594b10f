"""Whose memory a run uses: found in the right place, or refused."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from langchain.agents import create_agent
from scripted_agent import Flavour, episodes, run, script

from langchain_rag_tuned_memory import RagTunedMemoryMiddleware
from langchain_rag_tuned_memory._identity import Identity
from rag_tuned_memory import Memories, Memory
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace


def runtime(context: Any = None, user: Any = None) -> Any:
    return SimpleNamespace(context=context, server_info=SimpleNamespace(user=user) if user is not None else None)


def config(**values: Any) -> dict[str, Any]:
    return {"configurable": values}


@pytest.mark.parametrize(
    ("context", "user", "configurable", "found"),
    [
        ({"namespace": "alice"}, None, {}, "alice"),
        (SimpleNamespace(namespace="alice"), None, {}, "alice"),
        (None, SimpleNamespace(identity="alice"), {}, "alice"),
        (None, {"identity": "alice"}, {}, "alice"),
        (None, None, {"namespace": "alice"}, "alice"),
        ({"namespace": "alice"}, None, {"namespace": "bob"}, "alice"),
        ({"namespace": 7}, None, {}, "7"),
        ({"namespace": UUID(int=1)}, None, {}, str(UUID(int=1))),
        ({"namespace": "alice"}, SimpleNamespace(identity="alice"), {}, "alice"),
    ],
)
def test_where_it_is_looked_for(
    memories: Memories, context: Any, user: Any, configurable: dict[str, Any], found: str
) -> None:
    assert Identity(memories).memory(runtime(context, user), config(**configurable)).namespace == found


@pytest.mark.parametrize("context", [None, {}, {"user": "alice"}, SimpleNamespace(), "alice"])
def test_a_run_that_names_nobody_is_refused(memories: Memories, context: Any) -> None:
    with pytest.raises(InvalidNamespace, match=r"does not say whose memory.*namespace="):
        Identity(memories).memory(runtime(context), {})
    with pytest.raises(InvalidNamespace):
        Identity(memories).memory(None)


@pytest.mark.parametrize("value", ["", "  ", "a\x00b", True, 1.5, ["alice"]])
def test_what_cannot_be_a_namespace_is_refused(memories: Memories, value: Any) -> None:
    with pytest.raises(InvalidNamespace):
        Identity(memories).memory(runtime({"namespace": value}), {})


@pytest.mark.parametrize("where", ["context", "config"])
def test_a_client_cannot_name_another_user_than_the_server_knows(memories: Memories, where: str) -> None:
    context = {"namespace": "bob"} if where == "context" else None
    configurable = config(namespace="bob") if where == "config" else {}
    with pytest.raises(InvalidNamespace, match="'alice', but the run names 'bob'"):
        Identity(memories).memory(runtime(context, SimpleNamespace(identity="alice")), configurable)


def test_an_argument_decides_whatever_the_run_says(memories: Memories) -> None:
    asked = runtime({"namespace": "bob", "team": "ops"})
    assert Identity(memories, "alice").memory(asked).namespace == "alice"
    assert Identity(memories, lambda one: one.context["team"]).memory(asked).namespace == "ops"
    assert Identity(memories, key="team").memory(asked).namespace == "ops"


def test_a_memory_is_its_own_namespace_and_no_other(memory: Memory) -> None:
    assert Identity(memory).memory(runtime({"namespace": "bob"})) is memory
    with pytest.raises(InvalidNamespace, match="bound to namespace 'operations'"):
        Identity(memory, "bob")
    with pytest.raises(InvalidNamespace, match="bound to namespace 'operations'"):
        Identity(memory, lambda one: "bob").memory(runtime())


@pytest.mark.parametrize("made", [lambda m: Identity("alice"), lambda m: Identity(m, 7), lambda m: Identity(m, "")])
def test_wrong_arguments_are_refused(memory: Memory, made: Any) -> None:
    with pytest.raises(InvalidInput):
        made(memory)


@dataclass
class Context:
    namespace: str


@pytest.mark.parametrize("flavour", ["sync", "async"])
async def test_an_agent_says_it_by_its_context(memories: Memories, flavour: Flavour) -> None:
    agent = create_agent(script("hello alice"), middleware=[RagTunedMemoryMiddleware(memories)], context_schema=Context)
    await run(agent, flavour, "hello", context={"namespace": "alice"})
    assert len(episodes(memories.of("alice"))) == 1


@pytest.mark.parametrize("flavour", ["sync", "async"])
async def test_an_agent_that_does_not_say_it_does_not_run(memories: Memories, flavour: Flavour) -> None:
    model = script("never said")
    agent = create_agent(model, middleware=[RagTunedMemoryMiddleware(memories)])
    with pytest.raises(InvalidNamespace, match="does not say whose memory"):
        await run(agent, flavour, "hello")
    assert model.prompts == []
    await run(agent, flavour, "hello", config=config(namespace="alice"))
    assert len(episodes(memories.of("alice"))) == 1
