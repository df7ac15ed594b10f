import re
from datetime import UTC, datetime

from histories import demo, said, stored

from rag_tuned_memory.distil.labels import Episode, label_episodes
from rag_tuned_memory.distil.local_facts import local_facts
from rag_tuned_memory.distil.unknown import Strangers, unknown_facts
from rag_tuned_memory.distil.views import view
from rag_tuned_memory.store.base import StoredTrajectory


def named(history: list[StoredTrajectory]) -> list[Episode]:
    return label_episodes([view(one) for one in history])


def test_strangers_look_like_what_is_known() -> None:
    episodes = named(demo())
    strangers = Strangers(episodes, seed=0)
    made = [strangers.label() for _ in range(200)]
    assert len(set(made)) == 200
    assert all(re.fullmatch(r"incident INC-\d{4}", label or "") for label in made)
    assert {episode.label for episode in episodes}.isdisjoint(made)


def test_what_the_store_knows_is_no_stranger() -> None:
    episodes = named(stored([said("x", goal="ticket T-1a"), said("y", goal="ticket T-2a")]))
    known = [f"episode T-{digit}a" for digit in range(9)]
    strangers = Strangers(episodes, seed=0, known=known)
    assert strangers.label() == "episode T-9a"
    assert strangers.label() is None  # there is no other


def test_a_run_of_someone_known_is_no_stranger() -> None:
    goals = [f"Help user ana_{number}" for number in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8)]
    episodes = named(stored([said(str(n), goal=goal) for n, goal in enumerate(goals)]))
    strangers = Strangers(episodes, seed=0)
    made = [label for _ in range(9) if (label := strangers.label("episode ana_1, run 2"))]
    assert sorted(made) == ["episode ana_0, run 2", "episode ana_9, run 2"]


def test_talk_without_identifiers_has_strange_dates() -> None:
    times = [datetime(2026, 3, day, tzinfo=UTC) for day in range(1, 9)]
    episodes = named(stored([said(f"{time.day}", started_at=time) for time in times]))
    strangers = Strangers(episodes, seed=0)
    made = [strangers.label() for _ in range(50)]
    assert len(set(made)) == 50
    assert all(label is not None and label.startswith("the episode of ") for label in made)
    assert {episode.label for episode in episodes}.isdisjoint(made)


def test_at_the_ends_of_the_calendar_there_may_be_no_stranger() -> None:
    times = [datetime(9999, 12, 31, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)]
    strangers = Strangers(named(stored([said("x", started_at=time) for time in times])), seed=0)
    assert strangers.label() is not None
    alone = Strangers(named(stored([said("x", goal="abc"), said("y", goal="abd")])), seed=0)
    assert alone.label("something without a digit") is None


def test_unknown_facts_ask_of_strangers_what_is_asked_of_episodes() -> None:
    episodes = named(demo())
    facts = local_facts(episodes, per_episode=5)
    unknown = unknown_facts(facts, Strangers(episodes, seed=1), 30, seed=1)
    assert len(unknown) == 30
    assert {fact.topic for fact in unknown} == {fact.topic for fact in facts}
    assert all(not fact.trajectory_ids for fact in unknown)
    assert unknown_facts(facts, Strangers(episodes, seed=1), 30, seed=1) == unknown
    assert unknown_facts([], Strangers(episodes, seed=1), 30, seed=1) == []
