"""Every fact of the demo's history against a recomputation that shares no code with the synthesiser.

The recomputation reads the incidents' own form (which tool holds what), which the synthesiser does not know.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime

import pytest
from histories import demo

from rag_tuned_memory.demo.world import REMEDIES
from rag_tuned_memory.distil.facts import Fact
from rag_tuned_memory.distil.gather import facts_of
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.store.base import StoredTrajectory

SEEDS = [(20, 5), (60, 5), (25, 11), (2, 3)]


@dataclass(frozen=True)
class Incident:
    id: str
    name: str
    goal: str
    service: str
    cause: str
    fix: str
    start: datetime
    success: bool
    tools: tuple[str, ...]
    failed_tool: str | None
    worked_next: str | None

    @classmethod
    def read(cls, stored: StoredTrajectory) -> Incident:
        trajectory = stored.trajectory
        results = [(s.tool or "", s.text, s.error) for s in trajectory.steps if s.kind == "tool_result"]
        alert = json.loads(results[0][1])
        closing = next(s.arguments for s in trajectory.steps if s.kind == "tool_call" and s.tool == "close_incident")
        assert closing is not None
        assert trajectory.started_at is not None
        assert trajectory.ended_at is not None
        failures = [n for n, (_, _, error) in enumerate(results) if error]
        return cls(
            id=trajectory.id,
            name=str(closing["incident"]),
            goal=trajectory.goal,
            service=alert["service"],
            cause=str(closing["cause"]),
            fix=str(closing["fix"]),
            start=trajectory.started_at,
            success=bool(trajectory.outcome.success),
            tools=tuple(tool for tool, _, _ in results),
            failed_tool=results[failures[0]][0] if failures else None,
            worked_next=results[failures[0] + 1][0] if failures else None,
        )

    def value(self, key: str) -> str:
        return str(getattr(self, key))


MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def date(time: datetime) -> str:
    return f"{time.day} {MONTHS[time.month - 1]} {time.year}"


def month(time: datetime) -> str:
    return f"{MONTHS[time.month - 1]} {time.year}"


def only_mode(values: list[str]) -> str:
    """The most frequent value, which must be so alone."""
    counts = Counter(values)
    [best] = [value for value, count in counts.items() if count == max(counts.values())]
    return best


def local_truth(fact: Fact, incidents: dict[str, Incident]) -> str:
    one = incidents[fact.slots["label"].removeprefix("incident ")]
    assert fact.trajectory_ids == (one.id,)
    match fact.topic:
        case "cause" | "fix" | "attribute":
            return one.value(fact.slots["key"])
        case "goal":
            return one.goal
        case "failed_tool":
            return str(one.failed_tool)
        case "last_tool":
            return one.tools[-1]
        case "date":
            return date(one.start)
        case "outcome":
            return "success" if one.success else "failure"
    raise AssertionError(fact.topic)


def global_truth(fact: Fact, every: list[Incident]) -> str:
    slots = fact.slots
    match fact.topic:
        case "total":
            return str(len(every))
        case "succeeded":
            return str(sum(one.success for one in every))
        case "failed":
            return str(sum(not one.success for one in every))
        case "count":
            return str(sum(one.value(slots["key"]) == slots["value"] for one in every))
        case "most_common":
            return only_mode([one.value(slots["key"]) for one in every])
        case "given":
            return only_mode([o.value(slots["key"]) for o in every if o.value(slots["given"]) == slots["value"]])
        case "given_fix":
            return only_mode([o.fix for o in every if o.success and o.value(slots["given"]) == slots["value"]])
        case "most_used_tool":
            return only_mode([tool for one in every for tool in set(one.tools)])
        case "most_failed_tool":
            return only_mode([one.failed_tool for one in every if one.failed_tool])
        case "recovery":
            return only_mode([o.worked_next or "" for o in every if o.failed_tool == slots["tool"] and o.success])
        case "month_count":
            return str(sum(month(one.start) == slots["month"] for one in every))
        case "busiest_month":
            return only_mode([month(one.start) for one in every])
        case "trend":
            first, last = min(o.start for o in every), max(o.start for o in every)
            later = sum(one.start - first > last - one.start for one in every)
            return "more frequent" if later > len(every) - later else "less frequent"
        case "first":
            return f"incident {min(every, key=lambda one: one.start).name}"
    raise AssertionError(fact.topic)


@pytest.mark.parametrize(("episodes", "seed"), SEEDS)
def test_every_fact_is_true(episodes: int, seed: int) -> None:
    history = demo(episodes, seed)
    every = [Incident.read(one) for one in history]
    by_name = {one.name: one for one in every}
    for fact in facts_of(history, Recipe(global_facts=1_000), "ops").facts:
        truth = local_truth(fact, by_name) if fact.kind == "local" else global_truth(fact, every)
        assert fact.answer == truth, fact


@pytest.mark.parametrize(("episodes", "seed"), SEEDS[:3])
def test_nothing_that_an_incident_tells_is_left_out(episodes: int, seed: int) -> None:
    history = demo(episodes, seed)
    facts = facts_of(history, Recipe(global_facts=1_000), "ops").facts
    asked = {(fact.slots["label"], fact.topic) for fact in facts if fact.kind == "local"}
    topics = ("attribute", "cause", "fix", "date", "outcome")
    assert asked == {(f"incident {one.trajectory.source_id}", topic) for one in history for topic in topics}
    counted = {fact.slots["value"] for fact in facts if fact.topic == "count"}
    every = [Incident.read(one) for one in history]
    assert counted == {value for one in every for value in (one.service, one.cause, one.fix)}


def test_a_long_history_shows_which_fix_works_for_which_cause() -> None:
    facts = facts_of(demo(150), Recipe(global_facts=1_000), "ops").facts
    learnt = {f.slots["value"]: f.answer for f in facts if f.topic == "given_fix" and f.slots["given"] == "cause"}
    assert learnt == {cause: remedy.fix for cause, remedy in REMEDIES.items()}
