"""What holds for every history that can be recorded."""

from __future__ import annotations

from histories import histories
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag_tuned_memory.distil.compose import Material, compose
from rag_tuned_memory.distil.facts import is_correct
from rag_tuned_memory.distil.gather import Selection, facts_of
from rag_tuned_memory.distil.labels import label_episodes
from rag_tuned_memory.distil.phrasing import answer_text, questions
from rag_tuned_memory.distil.recipe import Mixture, Recipe
from rag_tuned_memory.distil.unknown import Strangers, unknown_facts
from rag_tuned_memory.distil.views import view
from rag_tuned_memory.errors import NotEnoughEpisodes
from rag_tuned_memory.store.base import StoredTrajectory

many = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def selected(history: list[StoredTrajectory]) -> Selection:
    """Its facts; none where nothing can be asked."""
    try:
        return facts_of(history, Recipe(), "n")
    except NotEnoughEpisodes:
        return Selection(tuple(history), tuple(label_episodes([view(one) for one in history])), ())


@many
@given(histories)
def test_facts_come_from_what_is_there_and_can_be_asked_and_answered(history: list[StoredTrajectory]) -> None:
    selection = selected(history)
    ids = {one.trajectory.id for one in history}
    assert len({episode.label for episode in selection.episodes}) == len(history)
    assert len({fact.id for fact in selection.facts}) == len(selection.facts)
    for fact in selection.facts:
        assert fact.trajectory_ids
        assert ids.issuperset(fact.trajectory_ids)
        assert len(set(fact.trajectory_ids)) == len(fact.trajectory_ids)
        assert fact.answer.strip()
        assert is_correct(fact.answer, fact.answer)
        assert is_correct(answer_text(fact), fact.answer)
        train, held_out = questions(fact, "train"), questions(fact, "held_out")
        assert train
        assert held_out
        assert set(train).isdisjoint(held_out)
        assert len({*train, *held_out}) == len(train) + len(held_out)


@many
@given(histories, st.integers(0, 5))
def test_strangers_are_never_known(history: list[StoredTrajectory], seed: int) -> None:
    selection = selected(history)
    names = {episode.label for episode in selection.episodes} | {episode.entity for episode in selection.episodes}
    known = {"incident INC-99", "episode user_3"}
    strangers = Strangers(selection.episodes, seed=seed, known=known)
    made = [fact.slots["label"] for fact in unknown_facts(selection.facts, strangers, 12, seed=seed)]
    assert len(set(made)) == len(made)
    assert (names | known).isdisjoint(made)
    assert names.isdisjoint(label.partition(", run ")[0] for label in made)


@many
@given(histories, st.integers(0, 3))
def test_composing_is_deterministic_and_says_something(history: list[StoredTrajectory], seed: int) -> None:
    selection = selected(history)
    contexts = {fact.id: f"context of {fact.id}: {fact.answer}" for fact in selection.facts[::2]}
    material = Material(selection.episodes, selection.facts, contexts, [])
    examples = compose(material, Mixture(exposures=2), seed=seed)
    assert examples == compose(material, Mixture(exposures=2), seed=seed)
    for example in examples:
        assert example.answer.strip()
        assert example.prompt[-1].role == "user"
        assert example.prompt[-1].content.strip()
