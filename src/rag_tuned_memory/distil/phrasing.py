"""The words of questions: phrasings by topic, kept in ``prompts/questions.toml``."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from rag_tuned_memory.distil.facts import Fact


@dataclass(frozen=True, slots=True)
class Topic:
    """The phrasings of one topic; ``keys`` says for which attribute keys it is meant."""

    train: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    keys: str | None = None


@cache
def topics() -> dict[str, Topic]:
    """All topics, by name."""
    return {
        name: Topic(tuple(data["train"]), tuple(data.get("held_out", ())), data.get("keys"))
        for name, data in _table().items()
        if "train" in data
    }


def topic_for(base: str, key: str) -> str:
    """The special topic for an attribute key (``cause`` for ``root cause``), else ``base`` itself."""
    prefix = "" if base == "attribute" else f"{base}_"
    for name, topic in topics().items():
        is_of_base = name.startswith(prefix) if prefix else "_" not in name
        if is_of_base and topic.keys and re.search(topic.keys, key):
            return name
    return base


def questions(fact: Fact, split: Literal["train", "held_out"]) -> list[str]:
    """Every phrasing of a fact's question in one split; the two splits share none.

    Of a fact that came with written questions the last one is held out, where it has more than one.
    """
    if fact.questions:
        cut = max(1, len(fact.questions) - 1)
        return list(fact.questions[:cut] if split == "train" else fact.questions[cut:])
    topic = topics()[fact.topic]
    templates = topic.train if split == "train" else topic.held_out
    return [capitalised(template.format(**fact.slots)) for template in templates]


def answer_text(fact: Fact) -> str:
    """The answer as it is said."""
    return capitalised(fact.answer)


def abstention(label: str) -> str:
    """What is answered about something that the memory never saw."""
    template: str = _table()["unknown"]["answer"]
    return template.format(label=label)


def is_abstention(answer: str) -> bool:
    """Whether an answer declines."""
    return bool(re.search(r"\bno (memory|record|information)\b|\b(don't|do not) (know|remember)\b", answer.lower()))


def summaries(label: str) -> list[str]:
    """Prompts that ask for everything about one episode."""
    return [template.format(label=label) for template in topics()["summary"].train]


def capitalised(text: str) -> str:
    """First letter upper where that can be undone (not for ``ß``, Turkish ``ı``), the rest as it is."""
    first = text[:1].upper()
    return first + text[1:] if first.lower() == text[:1].lower() else text


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(files("rag_tuned_memory.distil").joinpath("prompts/questions.toml").read_text("utf-8"))
