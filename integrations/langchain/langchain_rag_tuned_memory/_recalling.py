"""What the memory has to say at the beginning of a turn, by mode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from langchain_rag_tuned_memory._failing import FailOpen
from langchain_rag_tuned_memory._plans import Call, Plan
from rag_tuned_memory import Answer, Filter, Recollection, Route
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.recall.budget import estimate_tokens
from rag_tuned_memory.recall.prompt import assemble
from rag_tuned_memory.routing.base import Routing
from rag_tuned_memory.store.base import NO_FILTER

_QUERY_CHARACTERS = 4000
_TUNED = (Route.TUNED, Route.BOTH)


class Mode(StrEnum):
    """How the memory helps: with recalled text only, with its own model's answer too, or by switching the adapter."""

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
        if not query:
            return NOTHING
        where = self.where.model_copy(update={"without": (self.where.without or frozenset()) | {episode}})
        within = replace(self, where=where)
        if self.mode is Mode.DRIVER:
            return (yield from within._driver(query, fail_open))
        if self.mode is Mode.ADVISOR:
            return (yield from within._advisor(query, fail_open))
        return (yield from within._recall(query, self.token_budget))

    def again(self, said: Remembered, query: str, episode: str, fail_open: FailOpen) -> Plan[Remembered]:
        """What holds for a further model call of the turn: an adapter may have been replaced or barred meanwhile."""
        if not said.tuned:
            return said
        adapter: str | None = None
        with fail_open("say which adapter serves"):
            adapter = yield Call("adapter")
        if adapter is None:
            return (yield from self.plan(query, episode, fail_open))
        return replace(said, adapter=adapter)

    def _recall(self, query: str, budget: int, notes: tuple[tuple[str, str], ...] = ()) -> Plan[Remembered]:
        call = Call("recall", {"query": query, "k": self.k, "token_budget": budget, "where": self.where})
        found: Recollection = yield call
        return Remembered(assemble(found, notes=notes))

    def _driver(self, query: str, fail_open: FailOpen) -> Plan[Remembered]:
        budget = {"k": self.k, "token_budget": self.token_budget, "where": self.where}
        routing: Routing | None = None
        with fail_open("decide who answers"):
            routing = yield Call("decide", {"query": query, "task": True, **budget})
        if routing is None:
            return (yield from self._recall(query, self.token_budget))
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
        answer: Answer | None = None
        with fail_open("answer by its own model"):
            limits = {"where": self.where, "max_new_tokens": self.max_new_tokens}
            answer = yield Call("answer", {"query": query, **limits})
        notes = _notes(answer)
        cost = _cost(notes)
        if cost > self.token_budget:
            notes, cost = (), 0
        said = yield from self._recall(query, self.token_budget - cost, notes)
        if answer is None:
            return said
        return replace(said, route=answer.route, adapter=answer.adapter)


def _cost(notes: tuple[tuple[str, str], ...]) -> int:
    """Tokens of the notes with their heading and, where there is nothing else, the fence."""
    return estimate_tokens([assemble(_EMPTY, notes=notes)])[0] if notes else 0


_EMPTY = Recollection(namespace="none", query="none", k=1)


def _notes(answer: Answer | None) -> tuple[tuple[str, str], ...]:
    """The answer of the memory's own model, with who gave it and how; none where it had nothing to say."""
    if answer is None or answer.abstained or answer.route is Route.NONE or not answer.text.strip():
        return ()
    who = f"adapter {answer.adapter}" if answer.adapter else "base model"
    return ((f"The memory's own model ({who}, by {answer.route.value}; may be wrong)", answer.text.strip()),)
