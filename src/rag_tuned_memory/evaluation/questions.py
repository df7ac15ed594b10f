"""The questions of an experiment: what memories are asked, in words that no training saw, and what is right."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict

from rag_tuned_memory.distil.evaluation import QuestionKind
from rag_tuned_memory.distil.facts import Fact
from rag_tuned_memory.distil.gather import Selection
from rag_tuned_memory.distil.labels import label_episodes
from rag_tuned_memory.distil.local_facts import local_facts
from rag_tuned_memory.distil.phrasing import abstention, questions
from rag_tuned_memory.distil.replay import general_prompts
from rag_tuned_memory.distil.unknown import Strangers, unknown_facts
from rag_tuned_memory.distil.views import view
from rag_tuned_memory.store.base import StoredTrajectory

KINDS: Final[tuple[QuestionKind, ...]] = ("local", "global", "fresh", "unknown", "general")
UNKNOWN: Final = 24
"""Questions about strangers, where no limit says less."""
_SEED = 7_000_003
"""Added to the seed for strangers: a recipe's seed, and those of its probes, give others."""


class Question(BaseModel):
    """One question. ``gold`` is empty where the base model's own answer is the right one (``general``)."""

    model_config = ConfigDict(frozen=True)

    kind: QuestionKind
    text: str
    gold: str
    fact_id: str | None = None
    aliases: tuple[str, ...] = ()
    """Other answers that are right."""


def questions_for(
    selection: Selection,
    *,
    fresh: Sequence[StoredTrajectory] = (),
    seed: int = 0,
    limits: Mapping[QuestionKind, int] | None = None,
    per_episode: int = 5,
) -> list[Question]:
    """Questions of every kind about ``selection``, grouped by kind, each text once.

    Local and global ones come from its facts, in a held-out phrasing, and another one than the gate probes where a fact
    has several. Unknown ones ask local questions of strangers. General ones are the held-out general instructions.
    ``fresh`` are trajectories recorded after the adapter's watermark, each asked ``per_episode`` things. ``limits``
    bounds a kind; what is left is a seeded sample.
    """
    newer = _fresh_facts(selection, fresh, per_episode)
    found: list[Question] = [
        *(_asked(fact, fact.kind) for fact in selection.facts if questions(fact, "held_out")),
        *(_asked(fact, "fresh") for fact in newer if questions(fact, "held_out")),
        *_unknown(selection, fresh, seed + _SEED),
        *(Question(kind="general", text=prompt, gold="") for prompt in general_prompts("held_out")),
    ]
    by_kind: dict[QuestionKind, list[Question]] = {kind: [] for kind in KINDS}
    for question in {question.text: question for question in found}.values():
        by_kind[question.kind].append(question)
    return [one for kind in KINDS for one in _sample(by_kind[kind], (limits or {}).get(kind), f"{seed} {kind}")]


def _asked(fact: Fact, kind: QuestionKind) -> Question:
    words = questions(fact, "held_out")
    text = words[(int(fact.id, 16) + 1) % len(words)]
    return Question(kind=kind, text=text, gold=fact.answer, fact_id=fact.id)


def _fresh_facts(selection: Selection, fresh: Sequence[StoredTrajectory], per_episode: int) -> list[Fact]:
    """What can be asked of the new episodes, told apart from the old ones."""
    episodes = label_episodes([view(one) for one in (*selection.stored, *fresh)])
    new = {one.trajectory.id for one in fresh}
    return [fact for fact in local_facts(episodes, per_episode=per_episode) if set(fact.trajectory_ids) <= new]


def _unknown(selection: Selection, fresh: Sequence[StoredTrajectory], seed: int) -> list[Question]:
    newer = label_episodes([view(one) for one in fresh])
    known = {name for episode in newer for name in (episode.entity, episode.label)} | selection.known
    strangers = Strangers(selection.episodes, seed=seed, known=known)
    return [
        Question(kind="unknown", text=words[0], gold=abstention(fact.slots["label"]), fact_id=fact.id)
        for fact in unknown_facts(selection.facts, strangers, UNKNOWN, seed=seed)
        if (words := questions(fact, "held_out"))
    ]


def _sample(found: Sequence[Question], most: int | None, seed: str) -> list[Question]:
    if most is None or len(found) <= most:
        return list(found)
    return random.Random(f"questions {seed}").sample(list(found), most)
