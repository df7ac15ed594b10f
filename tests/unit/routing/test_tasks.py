"""Who acts: the adapter where it was measured to act as recorded."""

from __future__ import annotations

import pytest

from rag_tuned_memory.routing.base import Features, Route
from rag_tuned_memory.routing.rules import Acting, decide_task

TAUGHT = Features(big_picture=False, adapter="ops-v1")


def test_without_an_adapter_runs_are_recalled() -> None:
    decision = decide_task(Features(big_picture=False), None)
    assert (decision.route, decision.abstain) == (Route.RETRIEVAL, False)
    assert "no adapter" in decision.reason


@pytest.mark.parametrize("acting", [None, Acting(0.2, 0.9, 0.2), Acting(0.1, 0.9, 0.3)])
def test_an_adapter_that_acts_no_better_than_the_base_stays_off(acting: Acting | None) -> None:
    decision = decide_task(TAUGHT, acting)
    assert decision.route is Route.RETRIEVAL
    assert decision.reason == "ops-v1 was not taught how to act"


def test_an_adapter_that_learned_to_act_drives_alone() -> None:
    decision = decide_task(TAUGHT, Acting(0.88, 0.9, 0.0))
    assert decision.route is Route.TUNED
    assert "88%" in decision.reason


def test_recalled_runs_stand_beside_it_where_they_help() -> None:
    decision = decide_task(TAUGHT, Acting(0.6, 0.9, 0.0))
    assert decision.route is Route.BOTH
    assert "90%" in decision.reason
