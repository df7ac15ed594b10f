"""The store, the recorder and the histories over a real Weaviate."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.base import GetOp, PutOp
from langgraph.types import Command, interrupt
from scripted_agent import calls, episodes, run, script, told

from langchain_rag_tuned_memory import (
    RagTunedChatMessageHistory,
    RagTunedMemory,
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


@pytest.fixture
def memories(weaviate: Server, tmp_path: Path) -> Iterator[Memories]:
    url = weaviate.url(prefix=f"T{uuid.uuid4().hex[:10]}")
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
