"""Unanswerable neighbours: questions about things that look like known ones and that the memory never saw."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from datetime import timedelta

from rag_tuned_memory.distil.facts import Fact
from rag_tuned_memory.distil.labels import Episode, day

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
            if candidate is not None and candidate not in self._used:
                self._used.add(candidate)
                return candidate
        return None

    def _changed(self, label: str) -> str | None:
        if label.startswith("the "):
            times = [episode.view.time for episode in self._episodes if episode.view.time]
            other = self._random.choice(times) + timedelta(days=self._random.randint(-400, 400))
            return re.sub(r"\d+ [A-Z][a-z]+ \d{4}", day(other), label)
        head, comma, run = label.partition(", run ")
        digits = list(re.finditer(r"\d", head))
        if not digits:
            return None
        text = list(head)
        for match in digits:
            text[match.start()] = str(self._random.randint(0, 9))
        return "".join(text) + comma + run


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
