"""Facts of recorded histories against the files themselves, read without our importers."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from histories import stored

from rag_tuned_memory.distil.facts import Fact
from rag_tuned_memory.distil.gather import facts_of
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.formats import read_locomo, read_openai_chat

RECIPE = Recipe(local_facts=8, global_facts=1_000)


def by_topic(facts: tuple[Fact, ...]) -> dict[str, list[Fact]]:
    grouped: dict[str, list[Fact]] = {}
    for fact in facts:
        grouped.setdefault(fact.topic, []).append(fact)
    return grouped


@pytest.fixture(scope="module")
def tau_runs(recorded_data: Path) -> list[Any]:
    return list(json.loads((recorded_data / "tau-airline-dev.json").read_text()))


@pytest.fixture(scope="module")
def tau_facts(recorded_data: Path) -> dict[str, list[Fact]]:
    history = stored(list(read_openai_chat(recorded_data / "tau-airline-dev.json", "tau")))
    return by_topic(facts_of(history, RECIPE, "tau").facts)


def test_totals_are_those_of_the_rewards(tau_runs: list[Any], tau_facts: dict[str, list[Fact]]) -> None:
    won = sum(run["reward"] == 1 for run in tau_runs)
    assert [tau_facts[topic][0].answer for topic in ("total", "succeeded", "failed")] == [
        str(len(tau_runs)),
        str(won),
        str(len(tau_runs) - won),
    ]


def test_the_most_used_tool_is_called_in_most_runs(tau_runs: list[Any], tau_facts: dict[str, list[Fact]]) -> None:
    called: Counter[str] = Counter()
    for run in tau_runs:
        calls = [call for message in run["traj"] for call in message.get("tool_calls") or ()]
        called.update({call["function"]["name"] for call in calls})
    assert tau_facts["most_used_tool"][0].answer == called.most_common(1)[0][0]


def test_attributes_stand_in_the_runs_that_they_are_of(tau_runs: list[Any], tau_facts: dict[str, list[Fact]]) -> None:
    checked = 0
    for fact in tau_facts["attribute"]:
        name = fact.slots["label"].partition(", run ")[0].split()[-1]
        texts = [json.dumps(run["traj"]) for run in tau_runs if name in json.dumps(run["traj"])]
        assert texts
        quoted = re.compile(re.escape(fact.answer), re.IGNORECASE)
        assert any(quoted.search(text) for text in texts), fact
        checked += 1
    assert checked > 50


@pytest.fixture(scope="module")
def locomo_sessions(recorded_data: Path) -> list[tuple[str, str]]:
    """(date and time as written, all that is said) of each session."""
    talks = json.loads((recorded_data / "locomo-dev.json").read_text())
    found = []
    for talk in talks:
        conversation = talk["conversation"]
        for key, turns in conversation.items():
            if re.fullmatch(r"session_\d+", key) and turns:
                said = "\n".join(f"{t.get('text', '')} {t.get('blip_caption', '')}" for t in turns)
                found.append((conversation[f"{key}_date_time"], said))
    return found


@pytest.fixture(scope="module")
def locomo_facts(recorded_data: Path) -> dict[str, list[Fact]]:
    history = stored(list(read_locomo(recorded_data / "locomo-dev.json", "locomo")))
    return by_topic(facts_of(history, RECIPE, "locomo").facts)


def test_totals_and_months(locomo_sessions: list[tuple[str, str]], locomo_facts: dict[str, list[Fact]]) -> None:
    assert locomo_facts["total"][0].answer == str(len(locomo_sessions))
    months = Counter(re.sub(r".* on \d+ (\w+), (\d+)", r"\1 \2", when) for when, _ in locomo_sessions)
    assert {fact.slots["month"]: fact.answer for fact in locomo_facts["month_count"]} == {
        month: str(count) for month, count in months.items()
    }
    assert locomo_facts["busiest_month"][0].answer == months.most_common(1)[0][0]


def test_a_name_came_up_on_that_day_only(
    locomo_sessions: list[tuple[str, str]], locomo_facts: dict[str, list[Fact]]
) -> None:
    assert len(locomo_facts["mention"]) > 50
    for fact in locomo_facts["mention"]:
        name = re.compile(rf"\b{re.escape(fact.slots['name'])}\b", re.IGNORECASE)
        days = [
            re.sub(r".* on (\d+) (\w+), (\d+)", r"\1 \2 \3", when)
            for when, said in locomo_sessions
            if name.search(said)
        ]
        assert days == [fact.answer], fact
