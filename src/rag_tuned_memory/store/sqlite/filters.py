"""A ``Filter`` as SQL conditions on ``passages p`` and ``trajectories t``."""

from __future__ import annotations

import json
from typing import Any

from rag_tuned_memory.store.base import Filter
from rag_tuned_memory.store.values import microseconds

Conditions = tuple[str, dict[str, Any]]
"""SQL that begins with `` AND`` (or is empty), and its named parameters."""


def of_trajectory(where: Filter) -> Conditions:
    """The conditions that a trajectory meets as a whole."""
    sql: str = ""
    values: dict[str, Any] = {}
    if where.success is not None:
        sql += " AND t.success = :success"
        values["success"] = int(where.success)
    if where.source is not None:
        sql += " AND t.source = :source"
        values["source"] = where.source
    if where.trajectory_ids is not None:
        sql += " AND t.name IN (SELECT value FROM json_each(:trajectory_ids))"
        values["trajectory_ids"] = json.dumps(sorted(where.trajectory_ids))
    if where.without:
        sql += " AND t.name NOT IN (SELECT value FROM json_each(:without))"
        values["without"] = json.dumps(sorted(where.without))
    return sql, values


def of_passage(where: Filter) -> Conditions:
    """The conditions that each passage meets by itself; its time is its own, else its trajectory's."""
    sql: str = ""
    values: dict[str, Any] = {}
    if where.tool is not None:
        sql += " AND p.tool = :tool"
        values["tool"] = where.tool
    if where.since is not None:
        sql += " AND coalesce(p.time, t.time) >= :since"
        values["since"] = microseconds(where.since)
    if where.until is not None:
        sql += " AND coalesce(p.time, t.time) < :until"
        values["until"] = microseconds(where.until)
    return sql, values


def of_both(where: Filter) -> Conditions:
    """All conditions."""
    whole, whole_values = of_trajectory(where)
    own, own_values = of_passage(where)
    return whole + own, whole_values | own_values
