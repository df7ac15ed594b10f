"""From features to a route: rules, first match wins. Pure: no model, no store.

The order says what matters more. What needs no memory goes to the base model. What names only things that the store
never saw is declined. Without a trusted adapter there is only retrieval. What the adapter cannot have learned is
retrieved. What is left goes to the cheapest way that was measured to know it.
"""

from __future__ import annotations

from dataclasses import dataclass

from rag_tuned_memory.routing.base import Decision, Features, Route

NEEDS_MEMORY = 0.36
"""Cosine similarity of all-MiniLM-L6-v2 to a recalled passage or a learned question from which a query is taken to be
about the memory. Questions about a memory had at least 0.38, general ones at most 0.33."""
SAME_QUESTION = 0.6
"""Similarity to a learned question from which a query is taken to ask the same thing in other words."""
SURE = 0.5
"""A tuned answer of lower ``confidence`` is taken to be a guess: one of its tokens had less than even odds."""
WORTH_EVIDENCE = 0.1
"""How much more of the facts the adapter must know beside evidence to make the longer prompt worth it. Less is within
the chance of the few probes."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What was measured of the serving adapter, and what it learned of the question. Shares lie in [0, 1]."""

    local_recall: float
    beside_context: float
    reading: float
    reading_base: float
    internalised: bool | None
    """Whether the nearest learned question was answered right in new words; None: not probed or none near."""
    asks_learned: bool
    """Whether the query asks what a learned question asks."""


@dataclass(frozen=True, slots=True)
class Acting:
    """Shares of recorded calls that were made too: by the adapter, by it beside recalled runs, and by the base."""

    alone: float
    beside: float
    base: float


def decide_task(features: Features, acting: Acting | None) -> Decision:
    """The route for something that an agent is to do. ``acting`` is None where no serving adapter was taught to act.

    A task is no question: that it names something new says nothing against a way of acting that was learnt.
    """
    if features.adapter is None:
        return Decision(route=Route.RETRIEVAL, reason="no adapter serves this namespace", features=features)
    if acting is None or acting.alone <= acting.base:
        return Decision(
            route=Route.RETRIEVAL, reason=f"{features.adapter} was not taught how to act", features=features
        )
    shares = f"{acting.alone:.0%} of the recorded calls, the base {acting.base:.0%}"
    if acting.beside - acting.alone >= WORTH_EVIDENCE:
        reason = f"beside recalled runs the adapter acts as recorded more often ({acting.beside:.0%} against {shares})"
        return Decision(route=Route.BOTH, reason=reason, features=features)
    return Decision(route=Route.TUNED, reason=f"the adapter learned how to act ({shares})", features=features)


def decide(features: Features, trust: Trust | None) -> Decision:
    """The route for a query. ``trust`` is None when no adapter serves."""
    similarity = max(features.best_dense or 0.0, features.learned_similarity or 0.0)
    if not features.asks_memory and not features.known_entities and similarity < NEEDS_MEMORY:
        return Decision(
            route=Route.NONE,
            reason=f"nothing in memory is near the query (similarity {similarity:.2f} < {NEEDS_MEMORY}), and it names"
            " nothing that was recorded",
            features=features,
        )
    if features.entities and not features.known_entities:
        return Decision(
            route=Route.RETRIEVAL,
            abstain=True,
            reason=f"the store never saw {', '.join(features.entities)}",
            features=features,
        )
    if trust is None:
        return Decision(route=Route.RETRIEVAL, reason="no adapter serves this namespace", features=features)
    if features.big_picture and (features.learned_similarity or 0.0) >= SAME_QUESTION:
        news = f"; {features.newer_episodes} newer episodes are not in it" if features.newer_episodes else ""
        return Decision(
            route=Route.TUNED, reason=f"asks for the big picture, which the adapter learned{news}", features=features
        )
    if features.fresh:
        return _evidence_only(features, trust, "is about an episode that the adapter has not learned")
    return _specific(features, trust)


def after_answer(decision: Decision, confidence: float) -> Decision | None:
    """A second try where a tuned answer looks like a guess (``SURE``); None where it stands."""
    if decision.route is not Route.TUNED or decision.features.big_picture or confidence >= SURE:
        return None
    return Decision(
        route=Route.BOTH,
        reason=f"the tuned model was unsure (a token of its answer had a probability of {confidence:.2f} < {SURE}), so"
        " it reads what is recorded",
        features=decision.features,
    )


def _evidence_only(features: Features, trust: Trust, why: str) -> Decision:
    """Only what is recalled can tell; whoever was measured to read it better reads it."""
    if trust.reading > trust.reading_base:
        reader = f"the tuned model reads it ({trust.reading:.2f} of probes right, base {trust.reading_base:.2f})"
        return Decision(route=Route.BOTH, reason=f"{why}; {reader}", features=features)
    return Decision(route=Route.RETRIEVAL, reason=why, features=features)


def _specific(features: Features, trust: Trust) -> Decision:
    if not trust.asks_learned:
        return _evidence_only(features, trust, "asks for something that the adapter was not taught")
    if trust.internalised is False:
        return Decision(
            route=Route.BOTH, reason="the adapter learned this but did not know it when probed", features=features
        )
    if trust.beside_context - trust.local_recall >= WORTH_EVIDENCE:
        return Decision(
            route=Route.BOTH,
            reason=f"beside evidence the adapter knows more ({trust.beside_context:.2f} against"
            f" {trust.local_recall:.2f})",
            features=features,
        )
    return Decision(
        route=Route.TUNED,
        reason=f"the adapter learned this (it knew {trust.local_recall:.0%} of such facts in new words), and needs no"
        " evidence in the prompt",
        features=features,
    )
