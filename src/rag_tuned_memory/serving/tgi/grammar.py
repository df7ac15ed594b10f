"""Grammars that a TGI server holds an answer to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class JsonGrammar:
    """The answer is JSON of this schema, which TGI wants to have ``properties``."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RegexGrammar:
    """The answer matches this regular expression, in the form of the ``outlines`` library."""

    pattern: str


Grammar = JsonGrammar | RegexGrammar


def as_parameter(grammar: Grammar) -> dict[str, Any]:
    """The grammar as TGI takes it."""
    if isinstance(grammar, JsonGrammar):
        return {"type": "json", "value": dict(grammar.schema)}
    return {"type": "regex", "value": grammar.pattern}
