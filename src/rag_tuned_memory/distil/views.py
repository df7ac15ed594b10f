"""What questions can be asked of: the plain facts that a trajectory of any source shows on its face.

A view reads only what an agent saw or said (goal, steps, outcome, times), in whatever form it came: JSON in tool
calls and results, ``Key: value`` lines in messages, names in talk. Nothing here knows a schema.
"""

from __future__ import annotations

import calendar
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from rag_tuned_memory.store.base import StoredTrajectory
from rag_tuned_memory.trajectory import Step, StepKind, Trajectory

MAX_VALUE_CHARACTERS = 60
MAX_NAME_CHARACTERS = 40
MAX_NAME_WORDS = 4
MAX_JSON_CHARACTERS = 100_000
MAX_JSON_DEPTH = 30
_KEY_VALUE_LINE = re.compile(
    r"^[^\w\n]{0,8}([A-Z][A-Za-z]+(?: [a-z]+){0,2})\*{0,2}:\*{0,2} +(\S.{0,58}\S)$", re.MULTILINE
)
_IDENTIFIER = re.compile(r"\b(?=[\w-]{0,60}\d)(?=[\w-]{0,60}[A-Za-z])[A-Za-z0-9]+(?:[_-][A-Za-z0-9]+)*\b")
_NAME = re.compile(r"(?<![.!?…\"'] )(?<!^)\b[A-Z][a-z]+(?: [A-Z][a-z]+)*\b|\b[A-Z]{3,}[A-Za-z]*\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class EpisodeView:
    """One episode as facts. ``attributes`` maps a readable key to its only value in this episode."""

    trajectory_id: str
    sequence: int
    time: datetime | None
    goal: str
    source_id: str | None
    attributes: Mapping[str, str]
    identifiers: Mapping[str, str]
    """Identifier -> the key that it stood under (``INC-1042`` -> ``incident``), in order of appearance."""
    names: Mapping[str, int]
    """Names in talk (``Caroline``, ``Grand Canyon``) and how often they occur."""
    words: frozenset[str]
    """Every word of the goal and of the steps' texts, in lower case."""
    actors: tuple[str, ...]
    tools: tuple[str, ...]
    failed_tools: tuple[str, ...]
    last_working_tool: str | None
    recoveries: tuple[tuple[str, str], ...]
    """(tool that failed, tool that worked next)."""
    success: bool | None


def view(stored: StoredTrajectory) -> EpisodeView:
    """Read a stored trajectory."""
    trajectory = stored.trajectory
    pairs = list(_pairs(trajectory))
    calls = [step for step in trajectory.steps if step.kind is StepKind.TOOL_CALL and step.tool]
    results = [step for step in trajectory.steps if step.kind is StepKind.TOOL_RESULT and step.tool]
    talk = [step for step in trajectory.steps if step.kind is StepKind.MESSAGE]
    working = [step.tool for step in results if step.error is None]
    return EpisodeView(
        trajectory_id=trajectory.id,
        sequence=stored.sequence,
        time=trajectory.time,
        goal=trajectory.goal,
        source_id=trajectory.source_id,
        attributes=_single_valued(pairs),
        identifiers=_identifiers(pairs, trajectory.goal),
        names=_names(talk),
        words=frozenset(
            word for text in (trajectory.goal, *(s.text for s in trajectory.steps)) for word in words(text)
        ),
        actors=tuple(dict.fromkeys(step.actor for step in talk if step.actor)),
        tools=tuple(dict.fromkeys(step.tool for step in calls if step.tool)),
        failed_tools=tuple(dict.fromkeys(step.tool for step in results if step.error and step.tool)),
        last_working_tool=working[-1] if working else None,
        recoveries=tuple(_recoveries(results)),
        success=trajectory.outcome.success,
    )


def words(text: str) -> list[str]:
    """The words and numbers of a text in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def readable(key: str) -> str:
    """``root_cause`` and ``rootCause`` as ``root cause``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_\-.\s]+", " ", key)
    return spaced.strip().lower()


def _recoveries(results: list[Step]) -> Iterator[tuple[str, str]]:
    for failed, following in pairwise(results):
        if failed.error and not following.error and failed.tool and following.tool and failed.tool != following.tool:
            yield failed.tool, following.tool


def _pairs(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    for step in trajectory.steps:
        if step.arguments:
            yield from _leaves("", step.arguments)
        if step.kind in (StepKind.TOOL_RESULT, StepKind.OBSERVATION):
            yield from _json_pairs(step.text)
        elif step.kind is StepKind.MESSAGE:
            for key, value in _KEY_VALUE_LINE.findall(step.text):
                yield readable(key), value.rstrip(".")


def _json_pairs(text: str) -> Iterator[tuple[str, str]]:
    if not text.lstrip().startswith(("{", "[")) or len(text) > MAX_JSON_CHARACTERS:
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    yield from _leaves("", value)


def _leaves(key: str, value: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
    if depth > MAX_JSON_DEPTH:
        return
    if isinstance(value, Mapping):
        for inner, child in value.items():
            yield from _leaves(str(inner), child, depth + 1)
    elif isinstance(value, list):
        for child in value:
            yield from _leaves(key, child, depth + 1)
    elif isinstance(value, bool):
        yield readable(key), "yes" if value else "no"
    elif isinstance(value, str | int | float) and key:
        text = str(value).strip()
        if 0 < len(text) <= MAX_VALUE_CHARACTERS and "\n" not in text:
            yield readable(key), text


def _single_valued(pairs: list[tuple[str, str]]) -> dict[str, str]:
    values: dict[str, set[str]] = {}
    for key, value in pairs:
        values.setdefault(key, set()).add(value)
    return {key: next(iter(found)) for key, found in values.items() if can_name(key) and len(found) == 1}


def can_name(text: str) -> bool:
    """Whether a key, name or id is short enough to stand in a question."""
    return 0 < len(text) <= MAX_NAME_CHARACTERS and 0 < len(text.split()) <= MAX_NAME_WORDS


def is_identifier(text: str) -> bool:
    """Whether the whole text looks like a made-up name: letters and digits in one word."""
    return _IDENTIFIER.fullmatch(text) is not None and len(text) >= 4


def find_identifiers(text: str) -> list[str]:
    """Words of ``text`` that look like identifiers, in order, each once."""
    return list(dict.fromkeys(word for word in _IDENTIFIER.findall(text) if len(word) >= 4))


def _identifiers(pairs: list[tuple[str, str]], goal: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in pairs:
        if is_identifier(value):
            found.setdefault(value, re.sub(r"\s*\b(id|number|no|key|name)$", "", key) or key)
    in_goal = {word: found.get(word, "") for word in find_identifiers(goal)}
    return {**in_goal, **{word: key for word, key in found.items() if word not in in_goal}}


_CALENDAR = frozenset([*calendar.day_name, *calendar.month_name])


def _names(talk: list[Step]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for step in talk:
        for name in _NAME.findall(step.text):
            if name not in _CALENDAR and can_name(name):
                counts[name] = counts.get(name, 0) + 1
    return counts
