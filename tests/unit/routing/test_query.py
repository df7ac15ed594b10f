"""What is read off the words of a query."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.distil.gather import facts_of
from rag_tuned_memory.distil.phrasing import questions
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.distil.replay import general_prompts
from rag_tuned_memory.routing.query import dates, identifiers, is_big_picture, is_of_the_memory, names
from rag_tuned_memory.store.base import StoredTrajectory


@pytest.mark.parametrize(
    "query",
    [
        "How many incidents were there in March?",
        "What usually fixes a memory leak?",
        "Which service fails most often?",
        "What is the trend over time?",
        "What should we try first when the disk is full?",
    ],
)
def test_big_picture(query: str) -> None:
    assert is_big_picture(query)


@pytest.mark.parametrize(
    "query", ["What caused incident INC-1042?", "When did Caroline visit Sweden?", "What is the capital of France?"]
)
def test_not_big_picture(query: str) -> None:
    assert not is_big_picture(query)


def test_questions_of_the_demo_are_told_apart() -> None:
    """Most held-out phrasings by words alone; what is missed is found by its likeness to learned questions."""
    now = datetime.now(UTC)
    stored = [StoredTrajectory(t, i, now, t.content_hash) for i, t in enumerate(incidents("ops"))]
    facts = facts_of(stored, Recipe(), "ops").facts
    asked = {
        kind: [q for f in facts if f.kind == kind for q in questions(f, "held_out")] for kind in ("local", "global")
    }
    assert sum(map(is_big_picture, asked["global"])) >= 0.7 * len(asked["global"])
    assert sum(map(is_big_picture, asked["local"])) <= 0.02 * len(asked["local"])


def test_words_that_ask_the_memory() -> None:
    assert is_of_the_memory("Which tools does the agent use most often?")
    assert is_of_the_memory("Do you remember why it happened?")
    assert not [
        prompt for split in ("train", "held_out") for prompt in general_prompts(split) if is_of_the_memory(prompt)
    ]


def test_what_a_query_names() -> None:
    assert identifiers("Was mia_li_3668 in INC-1042 or on flight HAT136?") == ["mia_li_3668", "INC-1042", "HAT136"]
    assert names("When did Caroline see the Grand Canyon?") == ["Caroline", "Grand Canyon"]
    assert names('Who said "never again"?') == ["never again"]
    assert dates("What happened on 8 May 2023 and on 31 February 2023?") == [datetime(2023, 5, 8, tzinfo=UTC)]


def test_general_prompts_name_no_identifiers() -> None:
    assert not [prompt for prompt in general_prompts("held_out") if identifiers(prompt)]
