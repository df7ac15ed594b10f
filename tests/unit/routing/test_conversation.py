from __future__ import annotations

from typing import Any

import pytest

from rag_tuned_memory.distil.dialogue import memory_messages, system_prompt
from rag_tuned_memory.recall.prompt import assemble
from rag_tuned_memory.recall.recollection import Recalled, Recollection, Signals
from rag_tuned_memory.routing.base import Decision, Features, Route
from rag_tuned_memory.routing.conversation import Turn, directed, in_system
from rag_tuned_memory.serving.base import Message
from rag_tuned_memory.serving.tools import Turn as Turn_
from rag_tuned_memory.serving.tools import conversation
from rag_tuned_memory.store.base import Heading
from rag_tuned_memory.trajectory import Outcome

USER = Message("user", "which disk?")
TALK = (Message("system", "be brief"), Message("user", "hi"), Message("assistant", "yes?"), USER)
NOTHING = Recollection(namespace="ops", query="q", k=1)
SIGNALS = Signals(dense=0.5, bm25=None, fused=1, neighbour=0, actor=0, episode=1)
FOUND = Recollection(
    namespace="ops",
    query="q",
    k=1,
    results=(
        Recalled(
            trajectory_id="t",
            step=0,
            chunk=0,
            ref=None,
            kind="message",
            actor="user",
            tool=None,
            time=None,
            text="db-2 is full",
            score=1,
            signals=SIGNALS,
            reason="",
        ),
    ),
    headings={"t": Heading("t", "repair", Outcome(), None, "test", "h")},
)


def decision(route: Route, **changes: Any) -> Decision:
    features = Features(big_picture=False, adapter="ops-v1", entities=("db-9",))
    return Decision(**({"route": route, "reason": "so", "features": features} | changes))


def test_what_needs_no_memory_goes_to_the_base_as_it_is() -> None:
    assert directed(TALK, decision(Route.NONE), FOUND) == Turn(TALK)


@pytest.mark.parametrize(
    ("route", "adapter", "shown"),
    [(Route.TUNED, "ops-v1", False), (Route.RETRIEVAL, None, True), (Route.BOTH, "ops-v1", True)],
)
def test_routes_to_the_memory(route: Route, adapter: str | None, shown: bool) -> None:
    turn = directed(TALK, decision(route), FOUND)
    assert (turn.adapter, turn.abstention, turn.messages[1:]) == (adapter, None, TALK[1:])
    parts = [system_prompt(), "be brief", *([assemble(FOUND)] if shown else [])]
    assert turn.messages[0] == Message("system", "\n".join(parts))


@pytest.mark.parametrize("found", [NOTHING, FOUND])
def test_a_question_alone_is_asked_as_the_adapter_was_trained(found: Recollection) -> None:
    turn = directed((USER,), decision(Route.BOTH), found)
    assert turn.messages == memory_messages(USER.content, assemble(found))


@pytest.mark.parametrize(
    ("one", "found"),
    [(decision(Route.RETRIEVAL, abstain=True), FOUND), (decision(Route.RETRIEVAL), NOTHING)],
)
def test_where_the_memory_has_nothing_it_abstains_unless_the_model_can_act(one: Decision, found: Recollection) -> None:
    assert "db-9" in (directed(TALK, one, found).abstention or "")
    acting = directed(TALK, one, found, acting=True)
    assert acting.abstention is None
    assert system_prompt() not in acting.messages[0].content
    assert acting.messages[0].content.startswith("be brief")


def test_a_system_message_is_made_where_there_is_none() -> None:
    assert in_system((USER,), "", "x") == (Message("system", "x"), USER)
    assert in_system((USER,), "", "") == (USER,)
    assert in_system(TALK, "a", "z")[0].content == "a\nbe brief\nz"
    assert in_system((), "a", "") == (Message("system", "a"),)


def test_a_model_with_tools_sees_evidence_as_a_run_that_it_learned_from() -> None:
    turn = directed(TALK, decision(Route.BOTH), FOUND, acting=True)
    assert turn.adapter == "ops-v1"
    shown = conversation([Turn_("system", f"be brief\n\n{assemble(FOUND)}"), Turn_("user", "x")])
    assert turn.messages[0] == shown[0]
