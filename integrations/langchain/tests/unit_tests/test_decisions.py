"""The decision model. What needs langchain-core 1.8 is skipped where it is older."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from incidents import episode
from langchain_rag_tuned_memory._route_labels import question_in, takers
from rag_tuned_memory import Memories, Memory, Route
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace, MissingExtra, StoreUnavailable

HAS_DECISIONS = importlib.util.find_spec("langchain_core.decisions") is not None
needs_decisions = pytest.mark.skipif(not HAS_DECISIONS, reason="needs langchain-core 1.8 or newer")
QUESTION, GENERAL = "which disk is full?", "say hello"
LABELS = {"memory": {"routes": ["tuned", "retrieval", "both"]}, "general": "Everything else."}


def test_labels_take_the_routes_that_they_name_and_one_takes_the_rest() -> None:
    assert takers(LABELS, "q") == {
        Route.TUNED: "memory",
        Route.RETRIEVAL: "memory",
        Route.BOTH: "memory",
        Route.NONE: "general",
    }
    assert takers({"tuned": "x", "other": None}, "q") == {
        Route.TUNED: "tuned",
        Route.RETRIEVAL: "other",
        Route.BOTH: "other",
        Route.NONE: "other",
    }
    assert takers({"tuned": {"routes": "none"}, "other": {}}, "q")[Route.NONE] == "tuned"


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ({"a": "x", "b": "y"}, "only one label may take all other routes, not 'a', 'b'"),
        ({"tuned": "x"}, "no label takes the routes retrieval, both, none"),
        ({"a": {"routes": ["tuned"]}, "tuned": "x", "c": ""}, "both 'a' and 'tuned' take the route 'tuned'"),
        ({"a": {"routes": ["psychic"]}, "b": ""}, r"q\.criteria\.a: no such routes"),
        ({"a": {"routes": 3}, "b": ""}, r"q\.criteria\.a: no such routes"),
    ],
)
def test_labels_that_leave_it_open_are_refused(criteria: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        takers(criteria, "q")


@pytest.mark.parametrize(
    "state",
    [
        "what?",
        HumanMessage("what?"),
        [HumanMessage("before"), HumanMessage("what?"), AIMessage("so")],
        {"messages": [HumanMessage("what?")], "other": 1},
    ],
)
def test_the_question_is_the_last_human_message(state: Any) -> None:
    assert question_in(state) == "what?"


@pytest.mark.parametrize("state", [None, 3, [], {}, {"messages": "x"}, [AIMessage("x")], AIMessage("x"), ["x"]])
def test_a_state_without_a_question_is_refused(state: Any) -> None:
    if state == {"messages": "x"}:
        assert question_in(state) == "x"
        return
    with pytest.raises(InvalidInput):
        question_in(state)


@pytest.mark.skipif(HAS_DECISIONS, reason="needs a langchain-core older than 1.8")
def test_an_older_langchain_says_what_is_needed() -> None:
    import langchain_rag_tuned_memory

    with pytest.raises(MissingExtra, match=r"langchain-core 1\.8 or newer"):
        _ = langchain_rag_tuned_memory.RagTunedDecisionModel


def decision_model(memory: Any, **options: Any) -> Any:
    from langchain_rag_tuned_memory import RagTunedDecisionModel

    return RagTunedDecisionModel(memory=memory, **options)


def choice(state: Any = QUESTION, criteria: Any = LABELS) -> Any:
    from langchain_core.decisions import Choice

    return {"state": state, "questions": {"who": Choice(instructions="Who answers?", criteria=criteria)}}


@needs_decisions
class TestAgainstTheRealClass:
    @pytest.fixture(autouse=True)
    def _filled(self, memory: Memory) -> None:
        memory.record(episode())

    def test_it_chooses_by_route(self, memory: Memory) -> None:
        model = decision_model(memory)
        for response in (model.invoke(choice()), asyncio.run(model.ainvoke(choice()))):
            assert response.model == "routing"
            answer = response.choices["who"]
            assert (answer.choice, answer.confidence) == ("memory", 1.0)
            assert answer.probabilities == {"memory": 1.0, "general": 0.0}
        assert model.invoke(choice(GENERAL)).choices["who"].choice == "general"

    def test_another_kind_of_question_is_refused(self, memory: Memory) -> None:
        from langchain_core.decisions import Noul

        with pytest.raises(InvalidInput, match=r"questions\.urgent: .* no Noul"):
            decision_model(memory).invoke({"state": "x", "questions": {"urgent": Noul(instructions="Urgent?")}})

    @pytest.mark.parametrize("mistake", [choice(" ") if HAS_DECISIONS else None])
    def test_a_mistake_of_the_caller_s_is_raised(self, memory: Memory, mistake: Any) -> None:
        with pytest.raises(InvalidInput, match="non-empty"):
            decision_model(memory).invoke(mistake)

    def test_where_the_memory_fails_the_agent_goes_on_without_it(
        self, memory: Memory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def down(*_: Any, **__: Any) -> None:
            raise StoreUnavailable("the store is down")

        async def adown(*_: Any, **__: Any) -> None:
            down()

        monkeypatch.setattr(memory, "decide", down)
        monkeypatch.setattr(memory, "adecide", adown)
        model = decision_model(memory)
        for response in (model.invoke(choice()), asyncio.run(model.ainvoke(choice()))):
            assert (response.choices["who"].choice, response.choices["who"].confidence) == ("general", 0.0)
        assert caplog.text.count("the store is down") == 2
        with pytest.raises(StoreUnavailable):
            decision_model(memory, on_error="raise").invoke(choice())

    def test_the_namespace_comes_from_the_config_or_it_is_refused(self, memories: Memories) -> None:
        memories.of("alice").record(episode())
        model = decision_model(memories)
        config: Any = {"configurable": {"namespace": "alice"}}
        assert model.invoke(choice(), config).choices["who"].choice == "memory"
        assert asyncio.run(model.ainvoke(choice(), config)).choices["who"].choice == "memory"
        with pytest.raises(InvalidNamespace):
            model.invoke(choice())

    def test_in_the_router_middleware(self, memory: Memory) -> None:
        from langchain.agents import create_agent
        from langchain.agents.middleware import ModelChoice, ModelRouterMiddleware
        from langchain_core.language_models import GenericFakeChatModel

        from langchain_rag_tuned_memory import ChatRagTuned

        def fake() -> GenericFakeChatModel:
            return GenericFakeChatModel(messages=iter(["hello from the other"] * 4))

        router = ModelRouterMiddleware(
            classifier=decision_model(memory),
            instructions="Who should answer?",
            choices={
                "memory": ModelChoice(model=ChatRagTuned(memory=memory), criteria=LABELS["memory"]),
                "general": ModelChoice(model=fake(), criteria="Everything else."),
            },
        )
        agent = create_agent(fake(), middleware=[router])

        def ask(text: str) -> str:
            return str(agent.invoke({"messages": [HumanMessage(text)]})["messages"][-1].content)

        async def aask(text: str) -> str:
            return str((await agent.ainvoke({"messages": [HumanMessage(text)]}))["messages"][-1].content)

        assert [ask(QUESTION), ask(GENERAL)] == ["no idea", "hello from the other"]
        assert [asyncio.run(aask(QUESTION)), asyncio.run(aask(GENERAL))] == ["no idea", "hello from the other"]
