"""The rules, one by one: which features lead to which route, and in which order they count."""

from __future__ import annotations

from typing import Any

import pytest

from rag_tuned_memory.routing.base import Decision, Features, Route
from rag_tuned_memory.routing.rules import NEEDS_MEMORY, SURE, Trust, after_answer, decide


def features(**changes: Any) -> Features:
    values: dict[str, Any] = {
        "big_picture": False,
        "entities": ("INC-1042",),
        "known_entities": ("INC-1042",),
        "best_dense": 0.7,
        "learned_similarity": 0.9,
        "adapter": "ops-v1",
    }
    return Features(**(values | changes))


def trust(**changes: Any) -> Trust:
    values: dict[str, Any] = {
        "local_recall": 0.95,
        "beside_context": 0.9,
        "reading": 0.6,
        "reading_base": 0.3,
        "internalised": True,
        "asks_learned": True,
    }
    return Trust(**(values | changes))


CASES: list[tuple[str, Features, Trust | None, Route, bool]] = [
    ("learned and known", features(), trust(), Route.TUNED, False),
    ("big picture", features(big_picture=True, entities=(), known_entities=()), trust(), Route.TUNED, False),
    ("no adapter", features(adapter=None, learned_similarity=None), None, Route.RETRIEVAL, False),
    ("big picture without adapter", features(big_picture=True), None, Route.RETRIEVAL, False),
    (
        "nothing near",
        features(entities=(), known_entities=(), best_dense=NEEDS_MEMORY - 0.01, learned_similarity=None),
        trust(),
        Route.NONE,
        False,
    ),
    (
        "nothing near, but it asks the memory",
        features(asks_memory=True, entities=(), known_entities=(), best_dense=0.1, learned_similarity=None),
        None,
        Route.RETRIEVAL,
        False,
    ),
    (
        "nothing near, but it names a recorded thing",
        features(best_dense=0.1, learned_similarity=0.1),
        trust(asks_learned=False),
        Route.BOTH,
        False,
    ),
    ("unknown entity", features(known_entities=()), trust(), Route.RETRIEVAL, True),
    (
        "unknown entity in the big picture",
        features(known_entities=(), big_picture=True),
        trust(),
        Route.RETRIEVAL,
        True,
    ),
    ("fresh, the adapter reads better", features(fresh=True), trust(), Route.BOTH, False),
    ("fresh, the base reads better", features(fresh=True), trust(reading=0.2), Route.RETRIEVAL, False),
    ("never taught", features(learned_similarity=0.5), trust(asks_learned=False), Route.BOTH, False),
    ("taught, but not known when probed", features(), trust(internalised=False), Route.BOTH, False),
    ("knows more beside evidence", features(), trust(local_recall=0.8, beside_context=0.95), Route.BOTH, False),
]


@pytest.mark.parametrize(("name", "given", "measured", "route", "abstain"), CASES, ids=[case[0] for case in CASES])
def test_route(name: str, given: Features, measured: Trust | None, route: Route, abstain: bool) -> None:
    decision = decide(given, measured)
    assert (decision.route, decision.abstain) == (route, abstain), decision.reason
    assert decision.reason
    assert decision.features == given


def test_an_unsure_tuned_answer_is_tried_again_beside_evidence() -> None:
    decision = Decision(route=Route.TUNED, reason="-", features=features())
    again = after_answer(decision, SURE - 0.1)
    assert again is not None
    assert again.route is Route.BOTH
    assert after_answer(decision, SURE) is None


@pytest.mark.parametrize("route", [Route.NONE, Route.RETRIEVAL, Route.BOTH])
def test_only_tuned_answers_are_tried_again(route: Route) -> None:
    assert after_answer(Decision(route=route, reason="-", features=features()), 0.0) is None
