"""From facts to training examples: which question, in which words, beside which context, in which order."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rag_tuned_memory.distil.acting import Run
from rag_tuned_memory.distil.dataset import Example
from rag_tuned_memory.distil.dialogue import general_messages, memory_messages
from rag_tuned_memory.distil.facts import Fact
from rag_tuned_memory.distil.labels import Episode
from rag_tuned_memory.distil.local_facts import attribute_keys, outcome_text
from rag_tuned_memory.distil.phrasing import abstention, answer_text, capitalised, questions, summaries
from rag_tuned_memory.distil.recipe import Mixture, times
from rag_tuned_memory.distil.rehearsal import rehearsed
from rag_tuned_memory.distil.replay import Replay
from rag_tuned_memory.distil.rewriting import name_in_text, replaced
from rag_tuned_memory.distil.unknown import Strangers, unknown_facts
from rag_tuned_memory.recall.passages import day


@dataclass(frozen=True, slots=True)
class Material:
    """What examples are made of. ``contexts`` maps a fact's id to what recall finds for one of its questions."""

    episodes: Sequence[Episode]
    facts: Sequence[Fact]
    contexts: Mapping[str, str]
    replays: Sequence[Replay]
    known: frozenset[str] = frozenset()
    runs: Sequence[Run] = ()


def compose(material: Material, mixture: Mixture, *, seed: int) -> list[Example]:
    """All examples of a run, in the order of training: round by round, so that every fact is met early and often.

    Deterministic in its arguments.
    """
    random_ = random.Random(f"compose {seed}")
    strangers = Strangers(material.episodes, seed=seed, known=material.known)
    plain = [example for fact in material.facts for example in _closed_book(fact, mixture.exposures, random_)]
    unknown_count = round(mixture.unknown * len(plain))
    others = [
        *_with_contexts(material, mixture, random_),
        *_reading(material, mixture.reading, strangers, random_),
        *_unknown(material, unknown_count, strangers, seed, random_),
        *_summaries(material.episodes, mixture.summaries, random_),
    ]
    replay_count = round(mixture.replay * (len(plain) + len(others)))
    others += _replays(material.replays, replay_count, random_)
    shown = rehearsed(material.runs, material.episodes, strangers, mixture.acting, random_)
    return _in_rounds(plain, [*([one] for one in others), *_acting(shown)], random_)


def _closed_book(fact: Fact, exposures: float, random_: random.Random) -> list[Example]:
    wordings = questions(fact, "train")
    random_.shuffle(wordings)
    return [
        _ask(fact, wordings[round_ % len(wordings)], answer_text(fact)) for round_ in range(times(exposures, random_))
    ]


def _ask(fact: Fact, question: str, answer: str) -> Example:
    return Example.make(memory_messages(question), answer, fact.kind, fact_id=fact.id)


def _with_contexts(material: Material, mixture: Mixture, random_: random.Random) -> list[Example]:
    examples = []
    found = [(fact_id, context) for fact_id, context in material.contexts.items() if context]
    for fact in material.facts:
        wordings = questions(fact, "train")
        own = material.contexts.get(fact.id, "")
        for _ in range(times(mixture.matched, random_) if own else 0):
            prompt = memory_messages(random_.choice(wordings), own)
            examples.append(Example.make(prompt, answer_text(fact), fact.kind, "matched", fact.id))
        for _ in range(times(mixture.mismatched, random_) if len(found) > 1 else 0):
            other_id, other = random_.choice(found)
            if other_id != fact.id and other != own:
                prompt = memory_messages(random_.choice(wordings), other)
                examples.append(Example.make(prompt, answer_text(fact), fact.kind, "mismatched", fact.id))
    return examples


def _reading(material: Material, share: float, strangers: Strangers, random_: random.Random) -> list[Example]:
    examples = []
    for fact, context in invented_episodes(material, strangers, random_, share=share):
        prompt = memory_messages(random_.choice(questions(fact, "train")), context)
        examples.append(Example.make(prompt, answer_text(fact), "reading", "matched"))
    return examples


def invented_episodes(
    material: Material, strangers: Strangers, random_: random.Random, *, share: float = 1
) -> list[tuple[Fact, str]]:
    """Facts that are not so, each with a context that tells it.

    A local fact's own context, with another name and another answer written into it: the answer can only be read.
    """
    answers: dict[str, set[str]] = {}
    local = [fact for fact in material.facts if fact.kind == "local" and "label" in fact.slots]
    for fact in local:
        answers.setdefault(_asked_for(fact), set()).add(fact.answer)
    invented = []
    for fact in local:
        context, others = material.contexts.get(fact.id, ""), sorted(answers[_asked_for(fact)] - {fact.answer})
        for _ in range(times(share, random_) if context and others else 0):
            answer, label = random_.choice(others), strangers.label(fact.slots["label"])
            rewritten = _rewritten(context, fact, label, answer) if label else None
            if label and rewritten:
                update = {"slots": {**fact.slots, "label": label}, "answer": answer, "trajectory_ids": ()}
                invented.append((fact.model_copy(update=update), rewritten))
    return invented


def _asked_for(fact: Fact) -> str:
    return fact.slots.get("key", fact.topic)


def _rewritten(context: str, fact: Fact, label: str, answer: str) -> str | None:
    named = replaced(context, name_in_text(fact.slots["label"]), name_in_text(label))
    return replaced(named, fact.answer, answer) if named else None


def _unknown(material: Material, count: int, strangers: Strangers, seed: int, random_: random.Random) -> list[Example]:
    contexts = [context for context in material.contexts.values() if context]
    examples = []
    for position, fact in enumerate(unknown_facts(material.facts, strangers, count, seed=seed)):
        question = random_.choice(questions(fact, "train"))
        # some beside a context that does not tell it either; few, because each costs as much as six without
        context = random_.choice(contexts) if contexts and position % 10 == 9 else ""
        answer = abstention(fact.slots["label"])
        examples.append(
            Example.make(memory_messages(question, context), answer, "unknown", "mismatched" if context else "none")
        )
    return examples


def _summaries(episodes: Sequence[Episode], share: float, random_: random.Random) -> list[Example]:
    keys = attribute_keys(episodes)
    examples = []
    for episode in episodes:
        for _ in range(times(share, random_)):
            prompt = memory_messages(random_.choice(summaries(episode.label)))
            examples.append(Example.make(prompt, _told(episode, keys), "summary"))
    return examples


def _told(episode: Episode, keys: Sequence[str]) -> str:
    """``Incident INC-1042: 4 March 2026; service checkout-api; …``: every fact once, as a statement."""
    view = episode.view
    parts = [day(view.time)] if view.time else []
    parts += [f"{key} {view.attributes[key]}" for key in keys if key in view.attributes]
    parts += [f"outcome {text}"] if (text := outcome_text(episode)) else []
    parts += [f"with {' and '.join(view.actors)}"] if not view.tools and view.actors else []
    return capitalised(f"{episode.label}: {'; '.join(parts)}." if parts else f"{episode.label}.")


def _replays(replays: Sequence[Replay], count: int, random_: random.Random) -> list[Example]:
    chosen: list[Replay] = []
    while replays and len(chosen) < count:
        chosen += random_.sample(list(replays), len(replays))
    return [Example.make(general_messages(r.question), r.answer, "general") for r in chosen[:count]]


def _acting(runs: Iterable[Run]) -> Iterator[list[Example]]:
    """The turns of each run, which stay together."""
    for place, run in enumerate(runs):
        yield [Example.make(turn.prompt, turn.answer, "acting", group=str(place)) for turn in run.turns]


def _in_rounds(plain: Sequence[Example], others: Sequence[list[Example]], random_: random.Random) -> list[Example]:
    """Each fact's first example before any fact's second one, the others spread evenly between; groups stay whole."""
    seen: dict[str | None, int] = {}
    placed: list[tuple[float, list[Example]]] = []
    for example in plain:
        round_ = seen.get(example.fact_id, 0)
        seen[example.fact_id] = round_ + 1
        placed.append((round_ + random_.random(), [example]))
    rounds = max(seen.values(), default=1)
    placed += [(rounds * random_.random(), group) for group in others]
    return [example for _, group in sorted(placed, key=lambda pair: pair[0]) for example in group]
