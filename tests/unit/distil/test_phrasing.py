import re
from string import Formatter

import pytest

from rag_tuned_memory.distil.facts import Fact
from rag_tuned_memory.distil.phrasing import (
    abstention,
    capitalised,
    is_abstention,
    questions,
    summaries,
    topic_for,
    topics,
)

SLOTS = {
    "given": {"noun", "nouns", "given", "value", "key"},
    "given_fix": {"noun", "nouns", "given", "value", "key"},
    "count": {"noun", "nouns", "key", "value"},
    "most_common": {"noun", "nouns", "key"},
    "month_count": {"noun", "nouns", "month"},
    "recovery": {"noun", "nouns", "tool"},
    **{name: {"label", "key"} for name in ("attribute", "cause", "fix")},
    **{name: {"label"} for name in ("date", "outcome", "goal", "participants", "last_tool", "failed_tool", "summary")},
    "mention": {"name"},
}
EVERYTHING = {"noun", "nouns"}


@pytest.mark.parametrize("name", topics())
def test_every_template_of_a_topic_can_be_filled_by_its_facts(name: str) -> None:
    topic = topics()[name]
    for template in (*topic.train, *topic.held_out):
        used = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
        assert used <= SLOTS.get(name, EVERYTHING), template


@pytest.mark.parametrize("name", topics())
def test_a_held_out_phrasing_is_not_trained_in_any_topic(name: str) -> None:
    plain = re.compile(r"\W+")
    trained = {plain.sub(" ", template).lower() for topic in topics().values() for template in topic.train}
    held_out = [plain.sub(" ", template).lower() for template in topics()[name].held_out]
    assert trained.isdisjoint(held_out)
    assert len(set(held_out)) == len(held_out)
    assert len(set(topics()[name].train)) == len(topics()[name].train) >= 4
    assert bool(held_out) is (name != "summary")


@pytest.mark.parametrize(
    ("base", "key", "topic"),
    [
        ("attribute", "root cause", "cause"),
        ("attribute", "fix", "fix"),
        ("attribute", "prefix", "attribute"),
        ("attribute", "city", "attribute"),
        ("given", "fix", "given_fix"),
        ("given", "cause", "given"),
    ],
)
def test_an_attribute_that_people_word_otherwise_has_its_own_topic(base: str, key: str, topic: str) -> None:
    assert topic_for(base, key) == topic


def test_slots_are_put_in_as_they_are() -> None:
    fact = Fact(
        kind="local", topic="cause", slots={"label": "{key} %s {0}", "key": "cause"}, answer="x", trajectory_ids=()
    )
    assert "What caused {key} %s {0}?" in questions(fact, "train")


def test_the_last_written_question_is_held_out() -> None:
    def written(*words: str) -> Fact:
        return Fact(kind="local", topic="teacher", slots={}, answer="x", trajectory_ids=(), questions=words)

    assert questions(written("a", "b", "c"), "train") == ["a", "b"]
    assert questions(written("a", "b", "c"), "held_out") == ["c"]
    assert questions(written("a"), "train") == ["a"]
    assert questions(written("a"), "held_out") == []


@pytest.mark.parametrize(
    ("answer", "declines"),
    [
        (abstention("incident INC-1"), True),
        ("I don't know.", True),
        ("There is no record of it.", True),
        ("I do not remember that.", True),
        ("Pool exhaustion", False),
        ("No, it failed.", False),
        ("A memory leak", False),
    ],
)
def test_declining_is_recognised(answer: str, declines: bool) -> None:
    assert is_abstention(answer) is declines


def test_words() -> None:
    assert capitalised("incident iOS") == "Incident iOS"
    assert capitalised("") == ""
    assert capitalised("ßx") == "ßx"
    assert all("INC-1" in prompt for prompt in summaries("INC-1"))
