"""A selector that sends a query to the memory or to the documents beside it, by the memory's routing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from llama_index.core.base.base_selector import BaseSelector, MultiSelection, SelectorResult, SingleSelection
from llama_index.core.prompts.mixin import PromptDictType, PromptMixinType
from llama_index.core.schema import QueryBundle
from llama_index.core.tools.types import ToolMetadata

from llama_index.memory.rag_tuned.binding import Binding, MemoryLike, NamespaceLike
from llama_index.memory.rag_tuned.tolerance import OnError, check, tolerate
from rag_tuned_memory import Decision, Route
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.routing.rules import SAME_QUESTION

logger = logging.getLogger(__name__)

Unsure = Literal["memory", "documents", "both"]


class RagTunedSelector(BaseSelector):
    """Chooses between the memory's engines and document indexes, for RouterQueryEngine and RouterRetriever.

    ``tools`` names the choices that are the memory's: one name, or a name for each route (``{"tuned": "history",
    "retrieval": "search"}``; a route that is not named takes the first one). All other choices are documents.

    The memory gets what asks it, names what it has recorded, or asks what its adapter learned. The documents get what
    nothing in memory is near, or what names only things that were never recorded. ``unsure`` says who gets what is
    left: a query that is near something in memory and names nothing of it. ``both`` asks both.

    ``documents`` chooses where there are several document choices (a ``LLMSingleSelector``, say), and is asked about
    those only. With ``on_error`` ``log``, a memory that fails leaves the query to the documents.

    Raises:
        InvalidInput: no choice has the name given; several document choices and nothing that chooses among them.
    """

    def __init__(
        self,
        memory: MemoryLike,
        tools: str | Mapping[Route, str] | Mapping[str, str] = "memory",
        *,
        namespace: NamespaceLike = None,
        documents: BaseSelector | None = None,
        unsure: Unsure = "memory",
        on_error: OnError = "log",
    ) -> None:
        self._bound = Binding(memory, namespace)
        self._tools = _by_route(tools)
        self._documents = documents
        self._unsure = _unsure(unsure)
        self._on_error = check(on_error)

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"documents": self._documents} if self._documents else {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        """There are none of its own."""

    def _select(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        table = self._table(choices)
        memory = self._bound.memory()
        try:
            wish = self._wish(memory.decide(query.query_str).decision)
        except Exception as error:
            wish = self._without_memory(error)
        among = self._undecided(table, wish)
        chosen = among.select(table.documents, query) if among else None
        return _result(table, wish, chosen)

    async def _aselect(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        table = self._table(choices)
        memory = self._bound.memory()
        try:
            wish = self._wish((await memory.adecide(query.query_str)).decision)
        except Exception as error:
            wish = self._without_memory(error)
        among = self._undecided(table, wish)
        chosen = await among.aselect(table.documents, query) if among else None
        return _result(table, wish, chosen)

    def _table(self, choices: Sequence[ToolMetadata]) -> _Table:
        names = [choice.name for choice in choices]
        for name in self._tools.values():
            if name not in names:
                raise InvalidInput(
                    f"no choice is named {name!r}; there are {', '.join(map(repr, names))}",
                    place="tools",
                    remedy="Name the memory's tools as their ToolMetadata does.",
                )
        rest = [index for index, name in enumerate(names) if name not in self._tools.values()]
        of_route = {route: names.index(name) for route, name in self._tools.items()}
        return _Table(of_route, rest, [choices[index] for index in rest])

    def _wish(self, decision: Decision) -> _Wish:
        return _Wish(decision.route, _who(decision) or self._unsure, decision.reason)

    def _without_memory(self, error: Exception) -> _Wish:
        tolerate(error, self._on_error, logger, "The query goes to the documents, without memory")
        return _Wish(Route.RETRIEVAL, "documents", f"the memory failed: {type(error).__name__}")

    def _undecided(self, table: _Table, wish: _Wish) -> BaseSelector | None:
        """What chooses among several documents, where one of them is wanted."""
        if wish.who == "memory" or len(table.rest) < 2:
            return None
        if self._documents is None:
            names = ", ".join(repr(choice.name) for choice in table.documents)
            raise InvalidInput(
                f"nothing says which of the documents {names} is to answer",
                place="documents",
                remedy="Give RagTunedSelector(documents=...) a selector, LLMSingleSelector for one.",
            )
        return self._documents


@dataclass(frozen=True, slots=True)
class _Table:
    """The choices sorted: the memory's by route, and the rest."""

    of_route: Mapping[Route, int]
    rest: Sequence[int]
    documents: Sequence[ToolMetadata]


@dataclass(frozen=True, slots=True)
class _Wish:
    route: Route
    who: Unsure
    reason: str


def _who(decision: Decision) -> Literal["memory", "documents"] | None:
    """Whom a query is for; None where the memory cannot say."""
    features = decision.features
    if features.asks_memory or features.known_entities or (features.learned_similarity or 0.0) >= SAME_QUESTION:
        return "memory"
    if decision.route is Route.NONE or decision.abstain:
        return "documents"
    return None


def _result(table: _Table, wish: _Wish, chosen: SelectorResult | None) -> MultiSelection:
    selections = []
    if wish.who in ("memory", "both") or not table.rest:
        reason = f"memory, route {wish.route}: {wish.reason}"
        selections.append(SingleSelection(index=table.of_route[wish.route], reason=reason))
    if wish.who in ("documents", "both") and table.rest:
        picked = [(one.index, f"; {one.reason}") for one in chosen.selections] if chosen else [(0, "")]
        selections += [
            SingleSelection(index=table.rest[index], reason=f"documents: {wish.reason}{why}") for index, why in picked
        ]
    return MultiSelection(selections=selections)


def _by_route(tools: str | Mapping[Any, str]) -> dict[Route, str]:
    if isinstance(tools, str):
        return dict.fromkeys(Route, tools)
    if not tools:
        raise InvalidInput("no tool of the memory is named", place="tools")
    unknown = [route for route in tools if route not in list(Route)]
    if unknown:
        allowed = ", ".join(Route)
        raise InvalidInput(f"no route is named {unknown[0]!r}", place="tools", remedy=f"Allowed are {allowed}.")
    first = next(iter(tools.values()))
    return {route: tools.get(route, first) for route in Route}


def _unsure(unsure: str) -> Unsure:
    if unsure in get_args(Unsure):
        return cast(Unsure, unsure)
    raise InvalidInput(f"{unsure!r} is not known", place="unsure", remedy="Allowed are memory, documents and both.")
