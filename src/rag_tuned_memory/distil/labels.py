"""How questions refer to an episode: by an identifier that people would use, made unique where it is not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rag_tuned_memory.distil.views import EpisodeView, can_name
from rag_tuned_memory.recall.passages import day

DATE = re.compile(r"\d+ [A-Z][a-z]+ \d{4}")
"""What ``day`` writes."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A view with its names: ``entity`` may be shared by several episodes, ``label`` is this one's alone."""

    view: EpisodeView
    entity: str
    label: str


def label_episodes(views: Sequence[EpisodeView]) -> list[Episode]:
    """Name every episode, in order of time.

    The entity is an identifier of the episode (``incident INC-1042``), preferably one of its goal and one that few
    other episodes have; without identifiers it is the date and the speakers. Episodes that share an entity are told
    apart by number, in order of time: ``user mia_li_3668, run 2``.
    """
    ordered = sorted(views, key=lambda v: (v.time is None, v.time.timestamp() if v.time else 0.0, v.sequence))
    spread = Counter(identifier for v in ordered for identifier in v.identifiers)
    days = Counter(v.time.date() for v in ordered if v.time)
    entities = [_entity(v, spread, alone=v.time is not None and days[v.time.date()] == 1) for v in ordered]
    totals, seen = Counter(entities), Counter[str]()
    episodes = []
    for v, entity in zip(ordered, entities, strict=True):
        seen[entity] += 1
        label = entity if totals[entity] == 1 else f"{entity}, run {seen[entity]}"
        episodes.append(Episode(v, entity, label))
    return episodes


def noun(episodes: Sequence[Episode]) -> str:
    """What most episodes are (``incident``, ``conversation``), or ``episode``.

    Where several episodes share an entity, its word is no word for an episode: five runs for one user are not five
    users.
    """
    own = [e.entity.removeprefix("the ").split()[0] for e in episodes if e.label == e.entity]
    word, count = Counter(own).most_common(1)[0] if own else ("episode", 0)
    return word if word.isalpha() and word.islower() and count > len(episodes) / 2 else "episode"


def month(time: datetime) -> str:
    """``March 2026``."""
    return day(time).partition(" ")[2]


def head(label: str) -> str:
    """A label without the number that tells episodes of one entity apart."""
    return label.partition(", run ")[0]


def _entity(view: EpisodeView, spread: Counter[str], *, alone: bool) -> str:
    named = [identifier for identifier, key in view.identifiers.items() if key]
    pool = named or list(view.identifiers)
    if pool:
        in_goal = [identifier for identifier in pool if identifier in view.goal]
        candidates = in_goal or pool[:3]
        best = min(candidates, key=lambda identifier: (spread[identifier], candidates.index(identifier)))
        key = view.identifiers[best]
        return f"{key} {best}" if key and len(key.split()) <= 2 else f"episode {best}"
    if view.time is not None:
        what = "conversation" if len(view.actors) > 1 and not view.tools else "episode"
        clock = "" if alone else f" at {view.time:%H:%M}"
        return f"the {what} of {day(view.time)}{clock}"
    return f"episode {view.source_id if view.source_id and can_name(view.source_id) else view.sequence}"
