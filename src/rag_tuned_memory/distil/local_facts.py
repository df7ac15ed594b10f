"""Facts about single episodes and entities, read off their views: true by construction."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from rag_tuned_memory.distil.facts import Fact, normalise
from rag_tuned_memory.distil.labels import Episode
from rag_tuned_memory.distil.phrasing import topic_for
from rag_tuned_memory.distil.views import words
from rag_tuned_memory.recall.passages import day

MAX_ATTRIBUTES = 3
MAX_GOAL_CHARACTERS = 70


def local_facts(episodes: Sequence[Episode], *, per_episode: int) -> list[Fact]:
    """Up to ``per_episode`` facts for each episode: attributes first, then date and outcome, then what is left.

    Where all episodes of one entity agree, the fact is the entity's and is stated once.
    """
    keys = attribute_keys(episodes)
    by_entity: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        by_entity[episode.entity].append(episode)
    spoken = _where_spoken(episodes)
    facts: dict[str, Fact] = {}
    for episode in episodes:
        found = _candidates(episode, by_entity[episode.entity], keys, episodes, spoken)
        for fact in [fact for fact in found if normalise(fact.answer)][:per_episode]:
            facts.setdefault(fact.id, fact)
    return list(facts.values())


def attribute_keys(episodes: Sequence[Episode]) -> list[str]:
    """The attributes worth asking for, in the order in which an agent learns them.

    An attribute must be known of half the episodes and differ between them; the best known and most telling ones are
    kept. Keys that name the episode itself are left out.
    """
    values: dict[str, Counter[str]] = defaultdict(Counter)
    first_seen: dict[str, float] = defaultdict(float)
    for episode in episodes:
        for position, (key, value) in enumerate(episode.view.attributes.items()):
            if value not in episode.entity.split():
                values[key][value] += 1
                first_seen[key] += position
    enough = max(2, len(episodes) / 2) if len(episodes) > 1 else 1
    telling = [
        key for key, counts in values.items() if counts.total() >= enough and (len(counts) > 1 or len(episodes) == 1)
    ]
    best = sorted(telling, key=lambda key: (-values[key].total(), _recurrence(values[key]), key))[:MAX_ATTRIBUTES]
    return sorted(best, key=lambda key: (first_seen[key] / values[key].total(), key))


def _recurrence(counts: Counter[str]) -> float:
    """Low for attributes whose values come again: those that can be counted and compared between episodes."""
    return len(counts) / counts.total()


def outcome_text(episode: Episode) -> str | None:
    """``success`` or ``failure``; None where the outcome is not known."""
    success = episode.view.success
    return None if success is None else "success" if success else "failure"


def _candidates(
    episode: Episode,
    siblings: Sequence[Episode],
    keys: Sequence[str],
    episodes: Sequence[Episode],
    spoken: Mapping[str, set[str]],
) -> Iterator[Fact]:
    view = episode.view
    for key in keys:
        if key in view.attributes:
            agreed = {sibling.view.attributes.get(key) for sibling in siblings} == {view.attributes[key]}
            label, of = (episode.entity, siblings) if agreed else (episode.label, [episode])
            yield _fact(topic_for("attribute", key), {"key": key, "label": label}, view.attributes[key], of)
    several_days = len({e.view.time.date() for e in episodes if e.view.time}) > 1
    if view.time and several_days and not episode.entity.startswith("the "):
        yield _fact("date", {"label": episode.label}, day(view.time), [episode])
    if outcome := outcome_text(episode):
        yield _fact("outcome", {"label": episode.label}, outcome, [episode])
    yield from _mentions(episode, episodes, spoken)
    if 0 < len(view.goal) <= MAX_GOAL_CHARACTERS:
        yield _fact("goal", {"label": episode.label}, view.goal, [episode])
    if view.failed_tools and len(view.failed_tools) == 1:
        yield _fact("failed_tool", {"label": episode.label}, view.failed_tools[0], [episode])
    if view.last_working_tool and len(view.tools) > 1:
        yield _fact("last_tool", {"label": episode.label}, view.last_working_tool, [episode])
    if len(view.actors) == 2 and not view.tools:
        yield _fact("participants", {"label": episode.label}, " and ".join(view.actors), [episode])


def _where_spoken(episodes: Sequence[Episode]) -> dict[str, set[str]]:
    """Word -> ids of the trajectories that it occurs in."""
    where: dict[str, set[str]] = defaultdict(set)
    for episode in episodes:
        for word in episode.view.words:
            where[word].add(episode.view.trajectory_id)
    return where


def _mentions(episode: Episode, episodes: Sequence[Episode], spoken: Mapping[str, set[str]]) -> Iterator[Fact]:
    """Names whose words no other episode holds, in any case, most spoken of first: the date says when."""
    view = episode.view
    same_day = sum(1 for other in episodes if other.view.time and view.time and _same_day(other, episode))
    if view.time is None or same_day != 1 or view.tools:
        return
    names = sorted(view.names, key=lambda name: (-view.names[name], -len(name), name))
    for name in names:
        alone = set.intersection(*(spoken[word] for word in words(name))) == {view.trajectory_id}
        if alone and name not in view.actors:
            yield _fact("mention", {"name": name}, day(view.time), [episode])


def _same_day(one: Episode, other: Episode) -> bool:
    return bool(one.view.time and other.view.time and one.view.time.date() == other.view.time.date())


def _fact(topic: str, slots: dict[str, str], answer: str, of: Sequence[Episode]) -> Fact:
    ids = tuple(dict.fromkeys(episode.view.trajectory_id for episode in of))
    return Fact(kind="local", topic=topic, slots=slots, answer=answer, trajectory_ids=ids)
