"""The next message of a conversation, by a route: which model says it, and what stands in the system message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rag_tuned_memory.distil.dialogue import system_prompt
from rag_tuned_memory.distil.phrasing import abstention
from rag_tuned_memory.recall.prompt import assemble
from rag_tuned_memory.recall.recollection import Recollection
from rag_tuned_memory.routing.base import Decision, Route
from rag_tuned_memory.serving.base import Message

NOTHING = "that"


@dataclass(frozen=True, slots=True)
class Turn:
    """What is to be asked of whom: ``adapter`` None is the base model.

    Where the memory was needed and has nothing, nobody is asked and ``abstention`` is the answer.
    """

    messages: tuple[Message, ...]
    adapter: str | None = None
    abstention: str | None = None


def directed(messages: Sequence[Message], decision: Decision, found: Recollection, *, acting: bool = False) -> Turn:
    """The turn that answers the last question of ``messages`` by the route of ``decision``.

    Recalled text stands fenced at the end of the system message. ``acting``: the model has tools, so it is not told
    to answer from memory, and never abstains: it can look elsewhere. Both forms are those that adapters are trained in.
    """
    route, whole = decision.route, tuple(messages)
    adapter = decision.features.adapter if route in (Route.TUNED, Route.BOTH) else None
    if route is Route.NONE:
        return Turn(whole)
    told = route in (Route.RETRIEVAL, Route.BOTH) and not decision.abstain
    context = assemble(found) if told else ""
    if not acting and (decision.abstain or (route is Route.RETRIEVAL and not context)):
        return Turn(whole, abstention=abstained(decision))
    if acting:
        return Turn(in_system(whole, "", context, between="\n\n"), adapter)
    return Turn(in_system(whole, system_prompt(), context), adapter)


def abstained(decision: Decision) -> str:
    """What is said where the memory was asked and has nothing."""
    return abstention(", ".join(decision.features.entities) or NOTHING)


def in_system(messages: tuple[Message, ...], before: str, after: str, *, between: str = "\n") -> tuple[Message, ...]:
    """The conversation with text put around its system message, which is made where there is none."""
    own = messages[0].content if messages and messages[0].role == "system" else ""
    rest = messages[1:] if messages and messages[0].role == "system" else messages
    system = between.join(part for part in (before, own, after) if part)
    return (Message("system", system), *rest) if system else rest
