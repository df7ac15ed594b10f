"""Answers of a memory as responses."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path

import pytest
from adopted import adopt, script
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.schema import QueryBundle
from llama_index.core.tools import QueryEngineTool

from llama_index.memory.rag_tuned import RagTunedQueryEngine
from rag_tuned_memory import Filter, Memories, Memory, Route, Settings
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.errors import AdapterNotServable, BackendUnavailable, InvalidInput, InvalidNamespace
from rag_tuned_memory.serving.base import Request
from rag_tuned_memory.serving.scripted import ScriptedBackend

FIRST = incidents("operations", episodes=1)[0]
ASKED = f"What was the cause of {FIRST.source_id}?"
UNKNOWN = "Did the agent see INC-0000?"


@pytest.fixture
def adapter(memory: Memory, tmp_path: Path) -> str:
    return adopt(memory, tmp_path, [ASKED])


def test_is_a_query_engine() -> None:
    assert BaseQueryEngine.__name__ in [one.__name__ for one in RagTunedQueryEngine.__mro__]


def test_without_an_adapter_the_base_reads_what_is_recalled(memory: Memory) -> None:
    response = RagTunedQueryEngine(memory).query(ASKED)
    assert isinstance(response, Response)
    assert str(response) == "base, evidence"
    told = response.metadata
    assert told
    assert (told["route"], told["adapter"], told["abstained"]) == ("retrieval", None, False)
    assert told["reason"] == "no adapter serves this namespace"
    assert told["evidence"][0] == FIRST.id
    assert list(dict.fromkeys(node.metadata["trajectory_id"] for node in response.source_nodes)) == told["evidence"]
    assert told["prompt_tokens"] > told["answer_tokens"] == 2
    assert json.loads(json.dumps(told)) == told


def test_routing_takes_what_the_adapter_learned_to_it(memory: Memory, adapter: str) -> None:
    response = RagTunedQueryEngine(memory).query(ASKED)
    assert str(response) == f"{adapter}, no evidence"
    assert response.metadata
    assert (response.metadata["route"], response.metadata["adapter"]) == ("tuned", adapter)
    assert (response.source_nodes, response.metadata["evidence"]) == ([], [])


@pytest.mark.parametrize(
    ("route", "said"),
    [
        (Route.TUNED, "operations-v1, no evidence"),
        (Route.RETRIEVAL, "base, evidence"),
        (Route.BOTH, "operations-v1, evidence"),
        (Route.NONE, "base, no evidence"),
        ("both", "operations-v1, evidence"),
    ],
)
@pytest.mark.usefixtures("adapter")
async def test_a_fixed_route_is_taken(memory: Memory, route: Route, said: str) -> None:
    for streaming in (False, True):
        engine = RagTunedQueryEngine(memory, route=route, streaming=streaming)
        for response in (engine.query(ASKED), await engine.aquery(ASKED)):
            assert response.metadata
            assert response.metadata["route"] == route
            assert bool(response.source_nodes) == ("no evidence" not in said)
            text = [one async for one in response.async_response_gen()] if _awaited(response) else str(response)
            assert "".join(text) == said


def _awaited(response: object) -> bool:
    return isinstance(response, AsyncStreamingResponse)


async def test_awaited_gives_the_same(memory: Memory) -> None:
    engine = RagTunedQueryEngine(memory)
    asked, awaited = engine.query(ASKED), await engine.aquery(QueryBundle(ASKED))
    assert isinstance(awaited, Response)
    assert awaited.response == asked.response
    assert awaited.source_nodes == asked.source_nodes
    assert _timeless(awaited) == _timeless(asked)


def _timeless(response: object) -> dict[str, object]:
    return {key: value for key, value in response.metadata.items() if key != "seconds"}  # type: ignore[attr-defined]


def test_a_stream_tells_its_sources_before_its_text(memory: Memory) -> None:
    response = RagTunedQueryEngine(memory, streaming=True).query(ASKED)
    assert isinstance(response, StreamingResponse)
    assert response.metadata
    assert (response.metadata["route"], response.metadata["evidence"][0]) == ("retrieval", FIRST.id)
    assert response.source_nodes[0].metadata["trajectory_id"] == FIRST.id
    assert "answer_tokens" not in response.metadata
    assert list(response.response_gen) == ["base,", " evidence"]
    assert response.metadata["answer_tokens"] == 2


async def test_an_awaited_stream_too(memory: Memory) -> None:
    response = await RagTunedQueryEngine(memory, streaming=True).aquery(ASKED)
    assert isinstance(response, AsyncStreamingResponse)
    assert response.source_nodes[0].metadata["trajectory_id"] == FIRST.id
    assert [text async for text in response.response_gen] == ["base,", " evidence"]
    assert response.metadata
    assert response.metadata["answer_tokens"] == 2
    assert (await (await RagTunedQueryEngine(memory, streaming=True).aquery(ASKED)).get_response()).response == (
        "base, evidence"
    )


async def test_a_stream_that_is_left_leaves_nothing_running(memory: Memory, adapter: str) -> None:
    engine = RagTunedQueryEngine(memory, streaming=True)
    left = engine.query(ASKED)
    assert isinstance(left, StreamingResponse)
    assert next(iter(left.response_gen)) == f"{adapter},"
    aleft = await engine.aquery(ASKED)
    assert isinstance(aleft, AsyncStreamingResponse)
    assert await anext(aiter(aleft.response_gen)) == f"{adapter},"
    engine.query(ASKED)  # not begun
    await engine.aquery(ASKED)
    await aleft.response_gen.aclose()  # type: ignore[attr-defined]
    del left, aleft
    gc.collect()
    for _ in range(100):
        await asyncio.sleep(0.02)
        if all(task.done() for task in memory._running.iterations):
            break
    assert all(task.done() for task in memory._running.iterations)


@pytest.mark.parametrize("streaming", [False, True])
async def test_what_was_never_seen_is_declined(memory: Memory, backend: ScriptedBackend, streaming: bool) -> None:
    engine = RagTunedQueryEngine(memory, streaming=streaming)
    engine.query(UNKNOWN)
    before = len(backend.requests)
    response = engine.query(UNKNOWN)
    assert response.metadata
    assert response.metadata["abstained"] is True
    assert "INC-0000" in str(response)
    assert (response.source_nodes, response.metadata["evidence"]) == ([], [])
    assert len(backend.requests) == before
    awaited = await engine.aquery(UNKNOWN)
    assert awaited.metadata
    assert awaited.metadata["abstained"] is True


def test_an_empty_memory_declines(memories: Memories) -> None:
    response = RagTunedQueryEngine(memories, namespace="new", route=Route.RETRIEVAL).query(ASKED)
    assert response.metadata
    assert (response.metadata["abstained"], response.source_nodes) == (True, [])


def test_limits_reach_the_prompt(memory: Memory, backend: ScriptedBackend) -> None:
    engine = RagTunedQueryEngine(memory, k=1, max_new_tokens=1, where=Filter(trajectory_ids=frozenset({FIRST.id})))
    response = engine.query(ASKED)
    assert str(response) == "base,"
    assert len(response.source_nodes) == 1
    assert backend.requests[-1].max_new_tokens == 1
    assert [node.metadata["trajectory_id"] for node in engine.retrieve(QueryBundle(ASKED))] == [FIRST.id]


async def test_retrieve_is_there_whatever_the_route(memory: Memory, adapter: str) -> None:
    engine = RagTunedQueryEngine(memory)
    assert engine.retrieve(QueryBundle(ASKED))[0].metadata["trajectory_id"] == FIRST.id
    assert await engine.aretrieve(QueryBundle(ASKED)) == engine.retrieve(QueryBundle(ASKED))
    assert adapter


async def test_as_a_tool(memory: Memory) -> None:
    tool = QueryEngineTool.from_defaults(RagTunedQueryEngine(memory), name="history", description="what was done")
    assert tool.call(ASKED).content == "base, evidence"
    assert (await tool.acall(ASKED)).raw_output.metadata["evidence"][0] == FIRST.id


def test_bad_input_is_told(memory: Memory) -> None:
    with pytest.raises(InvalidInput, match="tuned, retrieval, both, none"):
        RagTunedQueryEngine(memory, route="psychic")  # type: ignore[arg-type]
    for streaming in (False, True):
        with pytest.raises(InvalidInput):
            RagTunedQueryEngine(memory, streaming=streaming).query("")
        with pytest.raises(AdapterNotServable, match="no adapter serves"):
            RagTunedQueryEngine(memory, route=Route.TUNED, streaming=streaming).query(ASKED)


async def test_a_model_that_fails_is_told(settings: Settings) -> None:
    def fails(request: Request) -> str:
        raise BackendUnavailable("the server is down")

    with Memory("operations", settings=settings, backend=ScriptedBackend(fails)) as memory:
        memory.record_many(incidents("operations", episodes=1))
        engine, streaming = RagTunedQueryEngine(memory), RagTunedQueryEngine(memory, streaming=True)
        with pytest.raises(BackendUnavailable):
            engine.query(ASKED)
        with pytest.raises(BackendUnavailable):
            await engine.aquery(ASKED)
        with pytest.raises(BackendUnavailable):
            str(streaming.query(ASKED))
        with pytest.raises(BackendUnavailable):
            await (await streaming.aquery(ASKED)).get_response()


async def test_each_user_has_his_own_history_and_adapter(memories: Memories, tmp_path: Path) -> None:
    for name in ("alice", "bob"):
        memories.of(name).record_many(incidents(name, episodes=2))
    adopt(memories.of("alice"), tmp_path, [ASKED])
    asking = "alice"
    engine = RagTunedQueryEngine(memories, namespace=lambda: asking)
    alice = engine.query(ASKED)
    asking = "bob"
    bob = engine.query(ASKED)
    assert (str(alice), str(bob)) == ("alice-v1, no evidence", "base, evidence")
    assert {node.metadata["namespace"] for node in bob.source_nodes} == {"bob"}
    asking = ""
    with pytest.raises(InvalidNamespace):
        engine.query(ASKED)
    with pytest.raises(InvalidNamespace):
        await engine.aquery(ASKED)

    engines = {name: RagTunedQueryEngine(memories, namespace=name, streaming=True) for name in ("alice", "bob")}

    async def said(name: str) -> str:
        return str((await (await engines[name].aquery(ASKED)).get_response()).response)

    found = await asyncio.gather(*(said(name) for name in ["alice", "bob"] * 4))
    assert found == ["alice-v1, no evidence", "base, evidence"] * 4


async def test_over_either_store(either_store: Settings, tmp_path: Path) -> None:
    with Memory("operations", settings=either_store, backend=ScriptedBackend(script)) as memory:
        memory.record_many(incidents("operations", episodes=4))
        engine = RagTunedQueryEngine(memory)
        response = await engine.aquery(ASKED)
        assert response.source_nodes[0].metadata["trajectory_id"] == FIRST.id
        adopt(memory, tmp_path, [ASKED])
        assert str(engine.query(ASKED)) == "operations-v1, no evidence"
