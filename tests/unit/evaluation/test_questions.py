"""The questions of an experiment."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.distil.evaluate import probes
from rag_tuned_memory.distil.phrasing import is_abstention, questions
from rag_tuned_memory.distil.replay import general_prompts
from rag_tuned_memory.evaluation.questions import KINDS, questions_for
from rag_tuned_memory.store import StoredTrajectory

pytestmark = pytest.mark.anyio


def recorded(selection: Any) -> list[StoredTrajectory]:
    """Two episodes more, as a store would give them."""
    last = selection.stored[-1]
    news = incidents("ops", episodes=2, skip=6)
    return [
        replace(last, trajectory=one, sequence=last.sequence + n, content_hash=one.content_hash)
        for n, one in enumerate(news, start=1)
    ]


async def test_every_kind_is_asked_once_in_words_that_no_training_saw(world: Any) -> None:
    asked = questions_for(world.selection, fresh=recorded(world.selection))
    counts = Counter(question.kind for question in asked)
    facts = Counter(fact.kind for fact in world.selection.facts)
    assert tuple(dict.fromkeys(question.kind for question in asked)) == KINDS
    assert (counts["local"], counts["global"]) == (facts["local"], facts["global"])
    assert counts["unknown"] > 15
    assert counts["general"] == len(general_prompts("held_out"))
    assert len({question.text for question in asked}) == len(asked)
    trained = {text for fact in world.selection.facts for text in questions(fact, "train")}
    assert not trained & {question.text for question in asked}
    assert not {q.text for q in asked if q.kind == "general"} & set(general_prompts("train"))


async def test_most_facts_are_asked_in_other_words_than_the_gate_probes(world: Any) -> None:
    gate = {probe.fact_id: probe.question for probe in probes(world.selection.facts)}
    several = {fact.id for fact in world.selection.facts if len(questions(fact, "held_out")) > 1}
    asked = {q.fact_id: q.text for q in questions_for(world.selection) if q.kind in ("local", "global")}
    assert several
    assert all(asked[fact_id] != gate[fact_id] for fact_id in several)


async def test_strangers_are_nobody_that_is_or_will_be_recorded(world: Any) -> None:
    fresh = recorded(world.selection)
    names = [str(stored.trajectory.source_id) for stored in (*world.selection.stored, *fresh)]
    unknown = [q for q in questions_for(world.selection, fresh=fresh) if q.kind == "unknown"]
    assert all("INC-" in q.text and is_abstention(q.gold) for q in unknown)
    assert not [q.text for q in unknown if any(name in q.text for name in names)]


async def test_fresh_questions_are_about_new_episodes_only(world: Any) -> None:
    fresh = recorded(world.selection)
    new = {str(stored.trajectory.source_id) for stored in fresh}
    asked = [q for q in questions_for(world.selection, fresh=fresh) if q.kind == "fresh"]
    assert {name for name in new if any(name in q.text for q in asked)} == new
    assert all(any(name in q.text for name in new) for q in asked)
    assert not [q for q in questions_for(world.selection) if q.kind == "fresh"]


async def test_limits_take_a_sample_that_the_seed_decides(world: Any) -> None:
    limits: dict[Any, int] = {"local": 5, "general": 0}
    one, again, other = (questions_for(world.selection, seed=seed, limits=limits) for seed in (1, 1, 2))
    assert one == again
    assert Counter(q.kind for q in one)["local"] == 5
    assert not [q for q in one if q.kind == "general"]
    assert {q.text for q in one if q.kind == "local"} != {q.text for q in other if q.kind == "local"}
