from __future__ import annotations

import re
from collections import Counter

import pytest
from histories import demo

from rag_tuned_memory.distil.compose import Material, compose, invented_episodes
from rag_tuned_memory.distil.dataset import Example, composition
from rag_tuned_memory.distil.dialogue import system_prompt
from rag_tuned_memory.distil.facts import Fact, is_correct
from rag_tuned_memory.distil.gather import facts_of
from rag_tuned_memory.distil.phrasing import is_abstention, questions
from rag_tuned_memory.distil.recipe import Mixture, Recipe
from rag_tuned_memory.distil.replay import Replay
from rag_tuned_memory.distil.unknown import Strangers

SELECTION = facts_of(demo(), Recipe(), "ops")
FACTS = {fact.id: fact for fact in SELECTION.facts}
REPLAYS = [Replay(question=f"General {n}?", answer=f"Answer {n}.") for n in range(10)]


def _context(fact: Fact) -> str:
    about = fact.slots.get("label", "all")
    return f"[{fact.id}] {about}: {fact.answer}."


CONTEXTS = {fact.id: _context(fact) for fact in SELECTION.facts}
MATERIAL = Material(SELECTION.episodes, SELECTION.facts, CONTEXTS, REPLAYS)
NONE = Mixture(exposures=1, matched=0, mismatched=0, reading=0, unknown=0, summaries=0, replay=0)


def composed(**changes: float) -> list[Example]:
    return compose(MATERIAL, NONE.model_copy(update=changes), seed=3)


def context_of(example: Example) -> str:
    """What stands after the system prompt."""
    assert example.prompt[0].content.startswith(system_prompt())
    return example.prompt[0].content.removeprefix(system_prompt()).removeprefix("\n")


def test_each_fact_is_asked_as_often_as_said_in_new_words_while_there_are_any() -> None:
    examples = composed(exposures=5)
    assert composition(examples) == {
        kind: 5 * sum(fact.kind == kind for fact in FACTS.values()) for kind in ("local", "global")
    }
    asked: dict[str, list[str]] = {}
    for example in examples:
        assert example.fact_id is not None
        fact = FACTS[example.fact_id]
        assert context_of(example) == ""
        assert is_correct(example.answer, fact.answer)
        assert example.prompt[1].content in questions(fact, "train")
        asked.setdefault(fact.id, []).append(example.prompt[1].content)
    assert asked.keys() == FACTS.keys()
    for id_, words in asked.items():
        assert len(set(words)) == min(5, len(questions(FACTS[id_], "train")))


def test_no_held_out_phrasing_is_ever_trained() -> None:
    held_out = {question for fact in FACTS.values() for question in questions(fact, "held_out")}
    examples = compose(MATERIAL, Mixture(exposures=20, matched=3, mismatched=3), seed=0)
    assert held_out.isdisjoint(example.prompt[-1].content for example in examples)


def test_a_share_that_is_not_whole_is_met_on_average() -> None:
    examples = composed(exposures=2.5)
    assert len(examples) / len(FACTS) == pytest.approx(2.5, abs=0.15)
    assert set(Counter(example.fact_id for example in examples).values()) == {2, 3}


def test_every_fact_comes_before_any_comes_again() -> None:
    examples = composed(exposures=4, summaries=2, replay=0.2)
    seen: Counter[str | None] = Counter()
    for example in examples:
        if example.fact_id:
            seen[example.fact_id] += 1
            assert seen[example.fact_id] <= min((seen[id_] for id_ in FACTS), default=0) + 1
    others = [place for place, example in enumerate(examples) if example.fact_id is None]
    assert min(others) < len(examples) / 4
    assert max(others) > 3 * len(examples) / 4


def test_matched_contexts_are_the_fact_s_own_and_mismatched_ones_another_s() -> None:
    for example in composed(matched=2, mismatched=2):
        if example.context == "none":
            continue
        assert example.fact_id is not None
        fact = FACTS[example.fact_id]
        context = context_of(example)
        assert context in CONTEXTS.values()
        assert (context == CONTEXTS[fact.id]) is (example.context == "matched")
        assert is_correct(example.answer, fact.answer)


def test_facts_for_which_recall_finds_nothing_have_no_matched_context() -> None:
    only = SELECTION.facts[0].id
    material = Material(SELECTION.episodes, SELECTION.facts, {**dict.fromkeys(CONTEXTS, ""), only: "found"}, [])
    examples = compose(material, NONE.model_copy(update={"matched": 2, "mismatched": 1}), seed=0)
    assert [example.fact_id for example in examples if example.context != "none"] == [only, only]
    alike = Material(SELECTION.episodes, SELECTION.facts, dict.fromkeys(CONTEXTS, "the same"), [])
    examples = compose(alike, NONE.model_copy(update={"mismatched": 1}), seed=0)
    assert all(example.context == "none" for example in examples)  # the same text is no other context


def test_reading_is_about_what_only_the_context_says() -> None:
    known = {fact.slots["label"] for fact in FACTS.values() if fact.kind == "local"}
    examples = [example for example in composed(reading=1) if example.kind == "reading"]
    assert len(examples) > 50
    for example in examples:
        context = context_of(example)
        told = context.partition(": ")[2].removesuffix(".")
        assert told.lower() in example.answer.lower()
        names = re.findall(r"INC-\d+", example.prompt[1].content)
        assert names
        assert names[0] in context
        assert not any(label.endswith(names[0]) for label in known)


def test_an_invented_episode_is_renamed_as_a_whole() -> None:
    def fact(label: str, answer: str) -> Fact:
        slots = {"key": "seat", "label": label}
        return Fact(kind="local", topic="attribute", slots=slots, answer=answer, trajectory_ids=("t",))

    one, other = fact("user ana_12, run 2", "1"), fact("user bob_34, run 2", "7")
    contexts = {one.id: "Ana_12 (row 10, run 2) sat in 1, not in 11.", other.id: "nothing about it"}
    material = Material(SELECTION.episodes, [one, other], contexts, [])
    import random

    strangers = Strangers(SELECTION.episodes, seed=0)
    [(invented, context)] = invented_episodes(material, strangers, random.Random(0))
    name = invented.slots["label"].removeprefix("user ").removesuffix(", run 2")
    assert name != "ana_12"
    assert context == f"{name} (row 10, run 2) sat in 7, not in 11."
    assert (invented.answer, invented.trajectory_ids) == ("7", ())


def test_questions_about_strangers_are_declined() -> None:
    examples = [example for example in composed(exposures=4, unknown=0.25) if example.kind == "unknown"]
    assert len(examples) == round(0.25 * 4 * len(FACTS))
    known = {fact.slots["label"] for fact in FACTS.values() if "label" in fact.slots}
    for example in examples:
        assert is_abstention(example.answer)
        assert not any(label in example.prompt[1].content for label in known)
        assert (context_of(example) != "") is (example.context == "mismatched")
    beside = [example for example in examples if example.context == "mismatched"]
    assert len(beside) == len(examples) // 10


def test_a_summary_tells_all_attributes_of_its_episode() -> None:
    examples = [example for example in composed(summaries=1) if example.kind == "summary"]
    assert len(examples) == len(SELECTION.episodes)
    for example in examples:
        [episode] = [e for e in SELECTION.episodes if e.label in example.prompt[1].content]
        for fact in FACTS.values():
            if fact.kind == "local" and fact.slots["label"] == episode.label:
                assert fact.answer in example.answer


def test_replays_are_a_share_of_all_others_and_come_without_the_memory_s_prompt() -> None:
    examples = composed(exposures=2, summaries=1, replay=0.25)
    replays = [example for example in examples if example.kind == "general"]
    assert len(replays) == round(0.25 * (len(examples) - len(replays)))
    answers = {replay.question: replay.answer for replay in REPLAYS}
    counts = Counter(example.prompt[0].content for example in replays)
    assert max(counts.values()) - min(counts.values()) <= 1
    for example in replays:
        assert [message.role for message in example.messages] == ["user", "assistant"]
        assert example.answer == answers[example.prompt[0].content]


def test_another_seed_is_another_order() -> None:
    mixture = Mixture()
    assert compose(MATERIAL, mixture, seed=0) == compose(MATERIAL, mixture, seed=0)
    assert compose(MATERIAL, mixture, seed=0) != compose(MATERIAL, mixture, seed=1)
