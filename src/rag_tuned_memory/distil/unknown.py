"""Unanswerable neighbours: questions about things that look like known ones and that the memory never saw."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from rag_tuned_memory.distil.facts import Fact
from rag_tuned_memory.distil.labels import DATE, Episode, head
from rag_tuned_memory.recall.passages import day

_ATTEMPTS = 200


class Strangers:
    """Makes labels of entities that are not among ``episodes``, never the same twice.

    ``INC-1042`` becomes another incident number, ``mia_li_3668`` another number behind the name, a date another date.
    ``known`` further texts (everything that the store holds) are avoided.
    """

    def __init__(self, episodes: Sequence[Episode], *, seed: int, known: Collection[str] = ()) -> None:
        self._episodes = episodes
        self._random = random.Random(f"strangers {seed}")
        self._used = {*known, *(episode.entity for episode in episodes), *(episode.label for episode in episodes)}

    def label(self, like: str | None = None) -> str | None:
        """A label in the manner of ``like`` (of any episode when None); None where no stranger can be made."""
        for _ in range(_ATTEMPTS):
            model = like or self._random.choice(self._episodes).label
            candidate = self._changed(model)
            if candidate is not None and self._used.isdisjoint((candidate, head(candidate))):
                self._used.add(candidate)
                return candidate
        return None

    def _changed(self, label: str) -> str | None:
        times = [episode.view.time for episode in self._episodes if episode.view.time]
        if times and DATE.search(label):
            return self._another_day(label, self._random.choice(times))
        own, run = head(label), label.removeprefix(head(label))
        if not re.search(r"\d", own):
            return None
        return re.sub(r"\d", lambda _: str(self._random.randint(0, 9)), own) + run

    def _another_day(self, label: str, near: datetime) -> str | None:
        try:
            other = near + timedelta(days=self._random.randint(-400, 400))
        except OverflowError:  # the calendar ends in the years 1 and 9999
            return None
        return DATE.sub(day(other), label)


def unknown_facts(facts: Sequence[Fact], strangers: Strangers, count: int, *, seed: int) -> list[Fact]:
    """``count`` local facts with a stranger's label in place of theirs. Their answers are not meant to be used."""
    random_ = random.Random(f"unknown {seed}")
    about_episodes = [fact for fact in facts if fact.kind == "local" and "label" in fact.slots]
    found = []
    for _ in range(count if about_episodes else 0):
        fact = random_.choice(about_episodes)
        if (label := strangers.label(fact.slots["label"])) is not None:
            slots = {**fact.slots, "label": label}
            found.append(fact.model_copy(update={"slots": slots, "trajectory_ids": ()}))
    return found
