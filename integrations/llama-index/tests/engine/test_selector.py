"""A memory beside documents, in LlamaIndex's routers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from adopted import NotPulled, adopt
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import CustomQueryEngine, RouterQueryEngine
from llama_index.core.retrievers import RouterRetriever
from llama_index.core.schema import QueryBundle
from llama_index.core.tools import QueryEngineTool, RetrieverTool
from llama_index.core.tools.types import ToolMetadata

from llama_index.memory.rag_tuned import RagTunedQueryEngine, RagTunedRetriever, RagTunedSelector
from rag_tuned_memory import Memories, Memory, Settings
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace, ModelNotPulled
from rag_tuned_memory.serving.scripted import ScriptedBackend

FIRST = incidents("operations", episodes=1)[0]
RECORDED = f"What was the cause of {FIRST.source_id}?"
GENERAL = "Who painted the ceiling?"
NEVER_SEEN = "What does the manual say of INC-0000?"
ASKS_MEMORY = "Did we see anything odd?"
NEAR = "unhandled exception after version change"
"""Words of an episode, without any of its names."""
MEMORY = ToolMetadata(name="memory", description="what the agent did")
MANUALS = ToolMetadata(name="manuals", description="the manuals")
CONTRACTS = ToolMetadata(name="contracts", description="the contracts")


class Fixed(BaseSelector):
    """Chooses one of what it is given, and keeps what that was."""

    def __init__(self, *indices: int) -> None:
        self.indices = indices
        self.seen: list[str | None] = []

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: dict[str, Any]) -> None: ...

    def _select(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        self.seen = [choice.name for choice in choices]
        return SelectorResult(selections=[SingleSelection(index=one, reason="I say so") for one in self.indices])

    async def _aselect(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        return self._select(choices, query)


class Manuals(CustomQueryEngine):
    """An engine that says that it was asked."""

    def custom_query(self, query_str: str) -> str:
        return "from the manuals"


@pytest.mark.parametrize(
    ("query", "index"), [(RECORDED, 1), (ASKS_MEMORY, 1), (NEAR, 1), (GENERAL, 0), (NEVER_SEEN, 0)]
)
async def test_the_memory_gets_what_is_its_own(memory: Memory, query: str, index: int) -> None:
    selector = RagTunedSelector(memory)
    chosen = selector.select([MANUALS, MEMORY], query)
    assert chosen.ind == index
    assert chosen.reason.startswith("memory, route " if index else "documents: ")
    assert await selector.aselect([MANUALS, MEMORY], query) == chosen


def test_the_reason_is_the_routing_s(memory: Memory) -> None:
    reason = memory.decide(RECORDED).decision.reason
    assert RagTunedSelector(memory).select([MEMORY, MANUALS], RECORDED).reason == f"memory, route retrieval: {reason}"


@pytest.mark.parametrize(("unsure", "indices"), [("memory", [1]), ("documents", [0]), ("both", [1, 0])])
async def test_unsure_says_who_gets_what_is_only_near(memory: Memory, unsure: Any, indices: list[int]) -> None:
    selector = RagTunedSelector(memory, unsure=unsure)
    assert selector.select([MANUALS, MEMORY], NEAR).inds == indices
    assert (await selector.aselect([MANUALS, MEMORY], NEAR)).inds == indices
    assert selector.select([MANUALS, MEMORY], RECORDED).inds == [1]
    assert selector.select([MANUALS, MEMORY], GENERAL).inds == [0]


async def test_each_route_may_have_a_tool_of_its_own(memory: Memory, tmp_path: Path) -> None:
    tuned, search = ToolMetadata(name="tuned", description=""), ToolMetadata(name="search", description="")
    choices = [MANUALS, search, tuned]
    selector = RagTunedSelector(memory, {"retrieval": "search", "tuned": "tuned"})
    assert selector.select(choices, RECORDED).ind == 1
    adopt(memory, tmp_path, [RECORDED])
    assert selector.select(choices, RECORDED).ind == 2
    assert (await selector.aselect(choices, RECORDED)).ind == 2
    assert selector.select(choices, GENERAL).ind == 0


async def test_several_documents_are_chosen_among_by_another_selector(memory: Memory) -> None:
    among = Fixed(1)
    selector = RagTunedSelector(memory, documents=among)
    choices = [MANUALS, MEMORY, CONTRACTS]
    for chosen in (selector.select(choices, GENERAL), await selector.aselect(choices, GENERAL)):
        assert chosen.ind == 2
        assert chosen.reason.endswith("; I say so")
    assert among.seen == ["manuals", "contracts"]
    assert RagTunedSelector(memory, documents=Fixed(0, 1)).select(choices, GENERAL).inds == [0, 2]
    among.seen = []
    assert selector.select(choices, RECORDED).ind == 1
    assert among.seen == []


async def test_without_one_several_documents_are_told(memory: Memory) -> None:
    selector = RagTunedSelector(memory)
    choices = [MANUALS, MEMORY, CONTRACTS]
    assert selector.select(choices, RECORDED).ind == 1
    with pytest.raises(InvalidInput, match="'manuals', 'contracts'"):
        selector.select(choices, GENERAL)
    with pytest.raises(InvalidInput, match="LLMSingleSelector"):
        await selector.aselect(choices, GENERAL)


def test_without_documents_all_is_the_memory_s(memory: Memory) -> None:
    assert RagTunedSelector(memory).select([MEMORY], GENERAL).ind == 0


async def test_a_memory_that_fails_leaves_the_documents(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with Memory("operations", settings=settings, embedder=NotPulled()) as memory, caplog.at_level(logging.WARNING):
        selector = RagTunedSelector(memory)
        choices = [MEMORY, MANUALS]
        for chosen in (selector.select(choices, RECORDED), await selector.aselect(choices, RECORDED)):
            assert chosen.ind == 1
            assert chosen.reason == "documents: the memory failed: ModelNotPulled"
        assert "without memory" in caplog.text
        strict = RagTunedSelector(memory, on_error="raise")
        with pytest.raises(ModelNotPulled):
            strict.select([MEMORY, MANUALS], RECORDED)
        with pytest.raises(ModelNotPulled):
            await strict.aselect([MEMORY, MANUALS], RECORDED)


async def test_an_empty_query_is_told(memory: Memory) -> None:
    with pytest.raises(InvalidInput):
        RagTunedSelector(memory).select([MEMORY, MANUALS], " ")
    with pytest.raises(InvalidInput):
        await RagTunedSelector(memory).aselect([MEMORY, MANUALS], "")


def test_bad_arguments_are_told(memory: Memory, memories: Memories) -> None:
    with pytest.raises(InvalidInput, match="no choice is named 'memory'"):
        RagTunedSelector(memory).select([MANUALS], GENERAL)
    with pytest.raises(InvalidInput, match="no choice is named 'memory'"):
        RagTunedSelector(memory).select(["memory", "manuals"], GENERAL)
    with pytest.raises(InvalidInput, match="no route is named 'psychic'"):
        RagTunedSelector(memory, {"psychic": "memory"})
    with pytest.raises(InvalidInput, match="no tool"):
        RagTunedSelector(memory, {})
    with pytest.raises(InvalidInput, match="memory, documents and both"):
        RagTunedSelector(memory, unsure="dunno")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="on_error"):
        RagTunedSelector(memory, on_error="dunno")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="namespace"):
        RagTunedSelector(memories)


async def test_two_users_at_once(memories: Memories) -> None:
    from contextvars import ContextVar

    memories.of("alice").record_many(incidents("alice", episodes=2))
    current: ContextVar[str | None] = ContextVar("current", default=None)
    selector = RagTunedSelector(memories, namespace=current.get)

    async def index(name: str) -> int:
        current.set(name)
        return int((await selector.aselect([MEMORY, MANUALS], RECORDED)).ind)

    assert await asyncio.gather(*(index(name) for name in ["alice", "bob"] * 3)) == [0, 1] * 3
    with pytest.raises(InvalidNamespace):
        await selector.aselect([MEMORY, MANUALS], RECORDED)


@pytest.mark.parametrize("streaming", [False, True])
async def test_in_a_router_query_engine(memory: Memory, streaming: bool) -> None:
    engine = RagTunedQueryEngine(memory, streaming=streaming)
    tools = [
        QueryEngineTool.from_defaults(Manuals(), name="manuals", description="the manuals"),
        QueryEngineTool.from_defaults(engine, name="memory", description="what the agent did"),
    ]
    router = RouterQueryEngine(RagTunedSelector(memory), tools, llm=MockLLM())
    told = router.query(RECORDED)
    assert (str(told), str(router.query(GENERAL))) == ("base, evidence", "from the manuals")
    assert told.metadata
    assert told.metadata["selector_result"].ind == 1
    assert (told.metadata["route"], told.metadata["answer_tokens"]) == ("retrieval", 2)
    assert told.source_nodes[0].metadata["trajectory_id"] == FIRST.id
    awaited = await router.aquery(RECORDED)
    assert awaited.source_nodes[0].metadata["trajectory_id"] == FIRST.id
    assert str(await router.aquery(GENERAL)) == "from the manuals"


async def test_both_are_combined(memory: Memory) -> None:
    tools = [
        QueryEngineTool.from_defaults(Manuals(), name="manuals", description="the manuals"),
        QueryEngineTool.from_defaults(RagTunedQueryEngine(memory), name="memory", description="what the agent did"),
    ]
    router = RouterQueryEngine(RagTunedSelector(memory, unsure="both"), tools, llm=MockLLM())
    for response in (router.query(NEAR), await router.aquery(NEAR)):
        assert "from the manuals" in str(response)
        assert "base, evidence" in str(response)
        assert response.source_nodes


async def test_in_a_router_retriever(memory: Memory) -> None:
    index = VectorStoreIndex.from_documents([Document(text="turn it off")], embed_model=MockEmbedding(8))
    tools = [
        RetrieverTool.from_defaults(index.as_retriever(), name="manuals", description="the manuals"),
        RetrieverTool.from_defaults(RagTunedRetriever(memory), name="memory", description="what the agent did"),
    ]
    router = RouterRetriever(RagTunedSelector(memory), tools, llm=MockLLM())
    for recorded, general in (
        (router.retrieve(RECORDED), router.retrieve(GENERAL)),
        (await router.aretrieve(RECORDED), await router.aretrieve(GENERAL)),
    ):
        assert recorded[0].metadata["trajectory_id"] == FIRST.id
        assert [node.text for node in general] == ["turn it off"]


def test_over_either_store(either_store: Settings, backend: ScriptedBackend) -> None:
    with Memory("operations", settings=either_store, backend=backend) as memory:
        memory.record_many(incidents("operations", episodes=3))
        chosen = [RagTunedSelector(memory).select([MANUALS, MEMORY], query).ind for query in (RECORDED, GENERAL)]
        assert chosen == [1, 0]
