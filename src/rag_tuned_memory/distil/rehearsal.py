"""How runs are shown in training: how often each, and under which names.

What an agent did for one incident is to be done for others: after the first time, a run is told of an entity that is
not there, so that its way of acting is learnt and its name is read. Runs whose calls are rare among the others are
shown more often, by repeat factors (Gupta et al. 2019, arXiv 1908.03195, section 4.2): else the adapter calls what is
mostly called.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from rag_tuned_memory.distil.acting import Demonstration, Run
from rag_tuned_memory.distil.labels import Episode
from rag_tuned_memory.distil.recipe import times
from rag_tuned_memory.distil.rewriting import name_in_text, replaced
from rag_tuned_memory.distil.unknown import Strangers
from rag_tuned_memory.serving.tools import read

RARE = 0.25
"""A call that occurs in a smaller share of the runs is rare."""


def rehearsed(
    runs: Sequence[Run],
    episodes: Sequence[Episode],
    strangers: Strangers,
    exposures: float,
    random_: random.Random,
) -> Iterator[Run]:
    """The runs as they are shown, ``exposures`` times each, rare ones more often: first as it was, then renamed."""
    labels = labels_of(episodes)
    factors = repeat_factors(runs)
    for run in runs:
        for time in range(times(exposures * factors[run.trajectory_id], random_)):
            yield renamed(run, labels.get(run.trajectory_id), strangers) if time else run


def labels_of(episodes: Sequence[Episode]) -> dict[str, str]:
    """How each trajectory's episode is called, by the trajectory's id."""
    return {episode.view.trajectory_id: episode.label for episode in episodes}


def repeat_factors(runs: Sequence[Run]) -> Mapping[str, float]:
    """How much more often than others each trajectory's runs are shown: 1, or more where it calls something rare."""
    called: dict[str, set[str]] = {}
    for run in runs:
        called.setdefault(run.trajectory_id, set()).update(call.name for turn in run.turns for call in turn.calls)
    spread = Counter(name for names in called.values() for name in names)
    return {
        trajectory_id: max([1.0, *(math.sqrt(RARE * len(called) / spread[name]) for name in names)])
        for trajectory_id, names in called.items()
    }


def renamed(run: Run, label: str | None, strangers: Strangers) -> Run:
    """The run as if it had been about another entity like ``label``; as it was, where its texts do not name one."""
    other = strangers.label(label) if label else None
    if label is None or other is None:
        return run
    old, new = name_in_text(label), name_in_text(other)
    if not any(replaced(message.content, old, new) for message in run.turns[0].prompt):
        return run
    return replace(run, turns=tuple(_renamed_turn(turn, old, new) for turn in run.turns))


def _renamed_turn(turn: Demonstration, old: str, new: str) -> Demonstration:
    def told(text: str) -> str:
        return replaced(text, old, new) or text

    answer = told(turn.answer)
    prompt = tuple(replace(message, content=told(message.content)) for message in turn.prompt)
    return replace(turn, prompt=prompt, answer=answer, calls=read(answer).calls)
