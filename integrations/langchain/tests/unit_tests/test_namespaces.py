"""Whose memory a retriever or a chat model uses inside of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from incidents import episode
from langchain_rag_tuned_memory import ChatRagTuned, RagTunedRetriever
from langchain_rag_tuned_memory._namespaces import asked_namespace, named_by_run
from rag_tuned_memory import Memories
from rag_tuned_memory.errors import InvalidNamespace

ID = UUID(int=7)


def runtime(context: Any = None, user: Any = None) -> Any:
    return SimpleNamespace(context=context, server_info=SimpleNamespace(user=user) if user else None)


def user(name: Any) -> Any:
    return SimpleNamespace(identity=name)


@pytest.mark.parametrize(
    ("run", "configurable", "named"),
    [
        (None, {}, None),
        (None, {"namespace": "alice"}, "alice"),
        (runtime(), {"namespace": "alice"}, "alice"),
        (runtime({"namespace": "alice"}), {"namespace": "bob"}, "alice"),
        (runtime(SimpleNamespace(namespace="alice")), {}, "alice"),
        (runtime({"other": 1}), {}, None),
        (runtime(user=user("alice")), {}, "alice"),
        (runtime(user={"identity": "alice"}), {"namespace": "alice"}, "alice"),
        (runtime({"namespace": 7}), {}, "7"),
        (None, {"namespace": ID}, str(ID)),
    ],
)
def test_who_is_named(run: Any, configurable: dict[str, Any], named: str | None) -> None:
    assert named_by_run(run, configurable) == named


@pytest.mark.parametrize(
    ("run", "configurable", "message"),
    [
        (runtime(user=user("alice")), {"namespace": "bob"}, "the server's user is 'alice', but the run names 'bob'"),
        (runtime({"namespace": "bob"}, user("alice")), {}, "but the run names 'bob'"),
        (runtime(user=user(None)), {"namespace": "bob"}, "server user: must be text"),
        (None, {"namespace": True}, "must be text, is True"),
        (None, {"namespace": " "}, "non-empty"),
        (runtime({"namespace": ["a"]}), {}, r"context\['namespace'\]: must be text"),
    ],
)
def test_who_cannot_be_named(run: Any, configurable: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidNamespace, match=message):
        named_by_run(run, configurable)


def test_what_is_given_with_the_call_comes_first() -> None:
    assert asked_namespace("alice", {"configurable": {"namespace": "bob"}}) == "alice"


@dataclass
class Context:
    namespace: str


class TestInAGraph:
    @pytest.fixture
    def graph(self, memories: Memories) -> Any:
        from langgraph.graph import StateGraph
        from typing_extensions import TypedDict

        for number, name in enumerate(("alice", "bob"), start=1):
            memories.of(name).record(episode(number))
        retriever, model = RagTunedRetriever(memory=memories, k=1), ChatRagTuned(memory=memories)

        class State(TypedDict, total=False):
            found: str
            evidence: list[str]

        def node(state: State) -> State:
            document = retriever.invoke("which disk is full?")[0]
            told = model.invoke("which disk is full?").response_metadata
            return {"found": document.metadata["goal"], "evidence": told["evidence"]}

        builder = StateGraph(State, context_schema=Context)
        builder.add_node("recall", node)
        builder.set_entry_point("recall")
        return builder.compile()

    @pytest.mark.parametrize(("name", "host"), [("alice", "db-1"), ("bob", "db-2")])
    def test_by_context_and_by_configuration(self, graph: Any, memories: Memories, name: str, host: str) -> None:
        evidence = [memories.of(name).recall("disk").results[0].trajectory_id]
        wanted = {"found": f"bring host {host} back", "evidence": evidence}
        assert graph.invoke({"found": ""}, context=Context(name)) == wanted
        assert graph.invoke({"found": ""}, {"configurable": {"namespace": name}}) == wanted

    def test_nobody(self, graph: Any) -> None:
        with pytest.raises(InvalidNamespace, match="names none"):
            graph.invoke({"found": ""})
