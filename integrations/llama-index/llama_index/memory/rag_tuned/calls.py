"""Ids of tool calls, made unique within one episode.

Some models give no id, or the tool's name as one, so that two calls of a run would be taken for one.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from rag_tuned_memory.trajectory import canonical_json


class Call(NamedTuple):
    """A call that waits for its result."""

    id: str
    tool: str
    asked: bytes


class CallIds:
    """Gives each call of an episode an id of its own, and each result the id of its call."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Call]] = {}
        self._used: set[str] = set()

    def called(self, given: str | None, tool: str, arguments: object, *, replayed: bool = False) -> str:
        """The id of a call; ``given`` is the model's.

        With ``replayed``, a call that waits for its result with the same id, tool and arguments is the same call.
        """
        given = given or ""
        asked = canonical_json(arguments)
        waiting = self._waiting.setdefault(given, deque())
        if replayed:
            for call in waiting:
                if (call.tool, call.asked) == (tool, asked):
                    return call.id
        call = Call(self._unique(given or tool), tool, asked)
        waiting.append(call)
        return call.id

    def answered(self, given: str | None) -> tuple[str, str | None]:
        """Id and tool of the call that a result belongs to: the oldest that waits. The tool is None where none does."""
        waiting = self._waiting.get(given or "")
        if waiting:
            call = waiting.popleft()
            return call.id, call.tool
        return self._unique(given or "result"), None

    def _unique(self, name: str) -> str:
        unique, number = name, 1
        while unique in self._used:
            number += 1
            unique = f"{name}~{number}"
        self._used.add(unique)
        return unique
