"""Agents with the middleware, the store, the recorder and the histories: over SQLite and over a real Weaviate alike."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.base import GetOp, PutOp
from langgraph.types import Command, interrupt
from scripted_agent import Flavour, ScriptedChat, calls, episodes, run, script, told

from langchain_rag_tuned_memory import (
    RagTunedChatMessageHistory,
    RagTunedMemory,
    RagTunedMemoryMiddleware,
    RagTunedStore,
    TrajectoryRecorder,
)
from rag_tuned_memory import Memories, Settings
from weaviate_server import HOW, Server, server


@pytest.fixture(scope="module")
def weaviate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for one in server(tmp_path_factory.mktemp("weaviate")):
        if one is None:
            pytest.skip(HOW)
        yield one


@pytest.fixture(params=["sqlite", "weaviate"])
def memories(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Memories]:
    url = ""
    if request.param == "weaviate":
        url = request.getfixturevalue("weaviate").url(prefix=f"T{uuid.uuid4().hex[:10]}")
    with Memories(settings=Settings(home=tmp_path, embedder="hashing", store=url)) as opened:
        yield opened


def test_a_langgraph_store(memories: Memories) -> None:
    store = RagTunedStore(memories, namespace=lambda labels: labels[1])
    store.put(("m", "alice"), "tea", {"text": "green tea", "n": 1})
    store.put(("m", "alice", "more"), "bike", {"text": "a red bicycle", "n": 2.5, "deep": [{"é": None}]})
    store.put(("m", "bob"), "tea", {"text": "no tea"})
    assert store.get(("m", "alice", "more"), "bike").value == {  # type: ignore[union-attr]
        **{"text": "a red bicycle", "n": 2.5, "deep": [{"é": None}]}
    }
    assert [one.key for one in store.search(("m", "alice"), query="which tea?")] == ["tea", "bike"]
    assert [one.key for one in store.search(("m", "alice"), filter={"n": {"$gt": 1}}, query="tea")] == ["bike"]
    results = store.batch([PutOp(("m", "alice"), "tea", {"n": 9}), GetOp(("m", "alice"), "tea")])
    assert results[1].value["n"] == 1  # type: ignore[union-attr]
    assert store.search(("m", "alice"), limit=1)[0].value == {"n": 9}
    assert store.list_namespaces(prefix=("m", "alice")) == [("m", "alice"), ("m", "alice", "more")]
    store.delete(("m", "alice"), "tea")
    assert [one.key for one in store.search(("m", "alice"))] == ["bike"]
    assert len(store.search(("m", "bob"))) == 1


@tool
def ask(question: str) -> str:
    """Asks somebody."""
    return f"they say {interrupt(question)}"


@tool
def free(disk: str) -> str:
    """Frees a disk."""
    if disk == "read-only":
        raise OSError("it cannot be written to")
    return f"{disk} is free"


def operator(disk: str) -> ScriptedChat:
    return script(calls(("free", {"disk": disk}, "c1"), ("ask", {"question": "sure?"}, "c2")))


@pytest.mark.parametrize("flavour", ["sync", "async"])
async def test_an_agent_with_the_middleware(memories: Memories, flavour: Flavour) -> None:
    """Two users at once, each interrupted and resumed by another process; a failure; then each recalls its own."""

    def begun(user: str, model: ScriptedChat, saver: InMemorySaver) -> tuple[RagTunedMemoryMiddleware, Any, Any]:
        memory = RagTunedMemoryMiddleware(memories, on_error="raise")
        agent = create_agent(model, [free, ask], middleware=[memory], checkpointer=saver)
        return memory, agent, {"configurable": {"thread_id": user, "namespace": user}}

    async def conversation(user: str) -> str:
        saver = InMemorySaver()
        memory, agent, config = begun(user, operator(f"{user}-db"), saver)
        assert "__interrupt__" in await run(agent, flavour, f"free {user}-db", config=config)
        memory.close()
        memory, agent, config = begun(user, script("done"), saver)
        await run(agent, flavour, Command(resume="yes"), config=config)
        broken = script(calls(("free", {"disk": "read-only"}, "c3")))
        other, agent, _ = begun(user, broken, saver)
        config = {"configurable": {"thread_id": f"{user} again", "namespace": user}}
        with pytest.raises(OSError, match="cannot be written"):
            await run(agent, flavour, "free the read-only disk", config=config)
        model = script("as before")
        last, agent, _ = begun(user, model, saver)
        config = {"configurable": {"thread_id": f"{user} later", "namespace": user}}
        await run(agent, flavour, "which disk is free?", config=config)
        for one in (memory, other, last):
            one.close()
        return model.injected[0]

    injected = await asyncio.gather(conversation("alice"), conversation("bob"))
    for user, text, other in (("alice", injected[0], "bob"), ("bob", injected[1], "alice")):
        first, failed, later = episodes(memories.of(user))
        assert told(first) == [
            f"message user: free {user}-db",
            f'tool_call c1: free({{"disk": "{user}-db"}})',
            'tool_call c2: ask({"question": "sure?"})',
            f"tool_result c1: {user}-db is free",
            "tool_result c2: they say yes",
            "message assistant: done",
        ]
        assert (failed.outcome.success, failed.steps[-1].error) == (False, "OSError: it cannot be written to")
        assert told(later) == ["message user: which disk is free?", "message assistant: as before"]
        assert f"{user}-db" in text
        assert f"{other}-db" not in text


async def test_an_agent_that_waits(memories: Memories) -> None:
    saver = InMemorySaver()
    config = {"configurable": {"thread_id": "t"}, "metadata": {"namespace": "carol"}}
    first = script(calls(("ask", {"question": "sure?"}, "c1")))
    with TrajectoryRecorder(memories, on_error="raise") as recorder:
        agent = create_agent(first, [ask], checkpointer=saver)
        await run(agent, "async", "free the disk", config={**config, "callbacks": [recorder]})
    with TrajectoryRecorder(memories, on_error="raise") as recorder:
        agent = create_agent(script("done"), [ask], checkpointer=saver)
        await run(agent, "async", Command(resume="yes"), config={**config, "callbacks": [recorder]})
    (one,) = episodes(memories.of("carol"))
    assert told(one) == [
        "message user: free the disk",
        'tool_call c1: ask({"question": "sure?"})',
        "tool_result c1: they say yes",
        "message assistant: done",
    ]


def test_a_conversation_and_its_memory(memories: Memories) -> None:
    history = RagTunedChatMessageHistory(memories, "s1", namespace="dave")
    for number in range(3):
        history.add_messages([HumanMessage(f"question {number}"), AIMessage(f"answer {number}")])
    assert [message.content for message in history.messages][-2:] == ["question 2", "answer 2"]
    memory = RagTunedMemory(memory=memories, namespace="dave", session_id="s1", window=1)
    loaded = memory.load_memory_variables({"input": "question 0"})["history"]
    assert "answer 0" in loaded
    assert loaded.endswith("Human: question 2\nAI: answer 2")
    history.clear()
    assert history.messages == []
