"""What the memory has to say at the beginning of a turn, by mode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from langchain_rag_tuned_memory._failing import FailOpen
from langchain_rag_tuned_memory._plans import Call, Plan
from rag_tuned_memory import Answer, Filter, Recollection, Route
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.recall.budget import estimate_tokens, within
from rag_tuned_memory.recall.prompt import assemble
from rag_tuned_memory.routing.base import Routing
from rag_tuned_memory.store.base import NO_FILTER

_QUERY_CHARACTERS = 4000
_TUNED = (Route.TUNED, Route.BOTH)


class Mode(StrEnum):
    """How the memory helps: not now, by recalled text, by its tuned model's answer too, or by switching adapters."""

    RECORD = "record"
    RECALL = "recall"
    ADVISOR = "advisor"
    DRIVER = "driver"


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is done for the model calls of a turn: fenced ``text`` for the prompt, an adapter for the model.

    ``tuned`` says that the adapter is to be on; ``route`` and ``adapter`` say what was decided, for logs.
    """

    text: str = ""
    tuned: bool = False
    route: Route | None = None
    adapter: str | None = None


NOTHING = Remembered()


@dataclass(frozen=True, slots=True)
class Recalling:
    """How much is recalled, of what, and in which mode.

    ``token_budget`` bounds the text that is put into a prompt, notes and fence included.

    Raises:
        InvalidInput: no such mode, or a number below its least.
    """

    mode: Mode = Mode.RECALL
    k: int = 6
    token_budget: int = 800
    where: Filter = NO_FILTER
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("token_budget", 0), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidInput(f"must be a whole number from {least}, is {value!r}", place=name)

    def plan(self, query: str, episode: str, fail_open: FailOpen) -> Plan[Remembered]:
        """What to ask the memory for ``query``; the present ``episode`` is left out, it is in the prompt anyway."""
        query = query.strip()[:_QUERY_CHARACTERS]
        if not query or self.mode is Mode.RECORD:
            return NOTHING
        where = self.where.model_copy(update={"without": (self.where.without or frozenset()) | {episode}})
        own = replace(self, where=where)
        if self.mode is Mode.DRIVER:
            return (yield from own._driver(query, fail_open))
        if self.mode is Mode.ADVISOR:
            return (yield from own._advisor(query, fail_open))
        return (yield from own._recall(query))

    def again(self, said: Remembered, query: str, episode: str, fail_open: FailOpen) -> Plan[Remembered]:
        """What holds for a further call of the tuned model: its adapter may have been replaced or barred meanwhile."""
        adapter: str | None = None
        with fail_open("say which adapter serves"):
            adapter = yield Call("adapter")
        if adapter is None:
            return (yield from self.plan(query, episode, fail_open))
        return replace(said, adapter=adapter)

    def _recall(self, query: str) -> Plan[Remembered]:
        found: Recollection = yield Call("recall", {"query": query, **self._limits})
        return Remembered(assemble(found))

    def _driver(self, query: str, fail_open: FailOpen) -> Plan[Remembered]:
        routing: Routing | None = None
        with fail_open("decide who answers"):
            routing = yield Call("decide", {"query": query, "task": True, **self._limits})
        if routing is None:
            return (yield from self._recall(query))
        decision = routing.decision
        shown = decision.route in (Route.RETRIEVAL, Route.BOTH) and not decision.abstain
        tuned = decision.route in _TUNED and not decision.abstain
        return Remembered(
            assemble(routing.recollection) if shown else "",
            tuned=tuned,
            route=decision.route,
            adapter=decision.features.adapter if tuned else None,
        )

    def _advisor(self, query: str, fail_open: FailOpen) -> Plan[Remembered]:
        routing: Routing | None = None
        with fail_open("decide who answers"):
            routing = yield Call("decide", {"query": query, **self._limits})
        if routing is None:
            return (yield from self._recall(query))
        answer: Answer | None = None
        # the base model would only read what the agent's own model is given to read
        if routing.decision.route in _TUNED and not routing.decision.abstain:
            with fail_open("answer by its own model"):
                own = {"where": self.where, "max_new_tokens": self.max_new_tokens}
                answer = yield Call("answer", {"query": query, **own})
        notes = _notes(answer)
        cost = _cost(notes)
        if cost > self.token_budget:
            notes, cost = (), 0
        found = within(routing.recollection, self.token_budget - cost, None)
        said = answer or routing.decision
        return Remembered(assemble(found, notes=notes), route=said.route, adapter=answer.adapter if answer else None)

    @property
    def _limits(self) -> dict[str, Any]:
        return {"k": self.k, "token_budget": self.token_budget, "where": self.where}


def _cost(notes: tuple[tuple[str, str], ...]) -> int:
    """Tokens of the notes with their heading and the fence."""
    return estimate_tokens([assemble(_EMPTY, notes=notes)])[0] if notes else 0


_EMPTY = Recollection(namespace="none", query="none", k=1)


def _notes(answer: Answer | None) -> tuple[tuple[str, str], ...]:
    """What the tuned model said, with which one it is and how it answered."""
    if answer is None or answer.abstained or answer.adapter is None or not answer.text.strip():
        return ()
    who = f"The memory's own model (adapter {answer.adapter}, by {answer.route.value}; may be wrong)"
    return ((who, answer.text.strip()),)
