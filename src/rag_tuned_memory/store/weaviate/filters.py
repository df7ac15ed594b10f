"""A ``Filter`` as Weaviate's conditions on passages and on trajectories."""

from __future__ import annotations

from typing import Any

from weaviate.classes.query import Filter as On

from rag_tuned_memory.store.base import Filter
from rag_tuned_memory.store.values import microseconds

Condition = Any
"""What the client takes as ``filters``; its own types are private."""


def all_of(conditions: list[Condition]) -> Condition | None:
    """Conditions joined; None where there are none."""
    if not conditions:
        return None
    return conditions[0] if len(conditions) == 1 else On.all_of(conditions)


def of_trajectory(where: Filter) -> list[Condition]:
    """The conditions that a trajectory meets as a whole; its passages carry copies of what they ask for."""
    conditions = []
    if where.success is not None:
        conditions.append(On.by_property("success").equal(where.success))
    if where.source is not None:
        conditions.append(On.by_property("source").equal(where.source))
    if where.trajectory_ids is not None:
        conditions.append(On.by_property("trajectory_id").contains_any(sorted(where.trajectory_ids)))
    if where.without:
        conditions.append(On.by_property("trajectory_id").contains_none(sorted(where.without)))
    return conditions


def of_passage(where: Filter) -> list[Condition]:
    """The conditions that each passage meets by itself."""
    conditions = []
    if where.tool is not None:
        conditions.append(On.by_property("tool").equal(where.tool))
    if (since := microseconds(where.since)) is not None:
        conditions.append(On.by_property("time").greater_or_equal(since))
    if (until := microseconds(where.until)) is not None:
        conditions.append(On.by_property("time").less_than(until))
    return conditions


def of_both(where: Filter) -> list[Condition]:
    """All conditions, on passages."""
    return of_trajectory(where) + of_passage(where)


def finds_nothing(where: Filter) -> bool:
    """Whether no trajectory can meet it; the server refuses an empty list."""
    return where.trajectory_ids is not None and not where.trajectory_ids
