"""What one call of the LLM asks, and of whom. Pure: asking is the LLM's, which has four flavours of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llama_index.memory.rag_tuned.conversation import answer_pattern, may_call, question_of, served, turns
from rag_tuned_memory import Filter, Route, Routing
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.recall.prompt import has_injected
from rag_tuned_memory.routing.conversation import Turn, directed
from rag_tuned_memory.serving.base import Generation
from rag_tuned_memory.serving.tools import conversation
from rag_tuned_memory.trajectory import describe

ROUTE, BASE = "route", "base"
"""Names that are no adapter's: the memory's routing chooses; the base model."""


class CallOptions(BaseModel):
    """What may be given with each call; the LLM's own fields are the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    model: str = Field(min_length=1)
    k: int = Field(ge=1)
    token_budget: int = Field(ge=0)
    where: Filter | None
    max_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)
    seed: int | None
    stop: tuple[str, ...]
    tools: tuple[Any, ...] = ()
    tool_choice: str | bool | dict[str, Any] | None = None
    tool_required: bool = False
    allow_parallel_tool_calls: bool = True


PER_CALL = frozenset(CallOptions.model_fields) - {
    "tools",
    "tool_choice",
    "tool_required",
    "allow_parallel_tool_calls",
}
"""The options that are also the LLM's own."""


def call_options(given: Mapping[str, Any]) -> CallOptions:
    """Options of one call. Raises InvalidInput, which names the option."""
    stop = given.get("stop")
    lists = {"stop": (stop,) if isinstance(stop, str) else stop or (), "tools": given.get("tools") or ()}
    try:
        return CallOptions.model_validate({**given, **lists})
    except ValidationError as error:
        allowed = ", ".join(sorted(CallOptions.model_fields))
        raise InvalidInput(
            describe(error), place="RagTunedLLM", remedy=f"With a call may be given: {allowed}."
        ) from error


@dataclass(frozen=True, slots=True)
class Plan:
    """A call, decided: ``generating`` are the arguments of ``Memory.generate``, ``told`` what is said of the choice.

    ``declined`` is the answer where the memory was needed and has nothing: nobody is asked.
    """

    generating: dict[str, Any]
    told: dict[str, Any]
    acting: bool
    declined: Generation | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One call: a chat, and how it is to be answered. ``base`` is the base model's name."""

    chat: tuple[ChatMessage, ...]
    options: CallOptions
    base: str
    namespace: str

    @property
    def question(self) -> str:
        """What the memory's routing is asked; empty where it is not."""
        return question_of(self.chat) if self.options.model == ROUTE else ""

    @property
    def acting(self) -> bool:
        """Whether the model has tools to call: what it is asked is then a task, and no question."""
        return may_call(self.options.tools, self.options.tool_choice)

    @property
    def recalling(self) -> dict[str, Any]:
        """Arguments of ``Memory.decide``."""
        limits = {"k": self.options.k, "token_budget": self.options.token_budget, "where": self.options.where}
        return {**limits, "task": self.acting}

    def plan(self, routing: Routing | None, why: str = "asked for") -> Plan:
        """What is asked of which model. ``routing`` is what the memory chose; else ``why`` it did not.

        Raises:
            InvalidInput: a message or a tool that the model cannot be told of, or a call required of no tool.
        """
        options = self.options
        tools = served(options.tools) if self.acting else ()
        messages = conversation(turns(self.chat), tools)
        named = None if options.model in (ROUTE, BASE, self.base) else options.model
        turn = Turn(messages, named)
        told: dict[str, Any] = {"route": None, "reason": why, "evidence": []}
        if routing is not None:
            shown = any(has_injected(message.content) for message in messages)
            turn = self._directed(turn, routing, shown=shown)
            told = _told(routing, shown=shown)
        choice = "required" if options.tool_required and options.tool_choice is None else options.tool_choice
        generating = {
            "messages": turn.messages,
            "adapter": turn.adapter,
            "max_new_tokens": options.max_tokens,
            "temperature": options.temperature,
            "seed": options.seed,
            "stop": options.stop,
            "pattern": answer_pattern(tools, choice, parallel=options.allow_parallel_tool_calls),
        }
        told |= {"abstained": turn.abstention is not None, "namespace": self.namespace}
        return Plan(generating, told, self.acting, _saying(turn.abstention) if turn.abstention is not None else None)

    def _directed(self, turn: Turn, routing: Routing, *, shown: bool) -> Turn:
        """By the route; a chat that already shows what was recalled is not told it again."""
        if not shown:
            return directed(turn.messages, routing.decision, routing.recollection, acting=self.acting)
        tuned = routing.decision.route in (Route.TUNED, Route.BOTH)
        return Turn(turn.messages, routing.decision.features.adapter if tuned else None)


def _told(routing: Routing, *, shown: bool) -> dict[str, Any]:
    decision = routing.decision
    reads = decision.route in (Route.RETRIEVAL, Route.BOTH) and not (decision.abstain or shown)
    ids = [one.trajectory_id for one in routing.recollection.results] if reads else []
    return {"route": decision.route.value, "reason": decision.reason, "evidence": list(dict.fromkeys(ids))}


def _saying(text: str) -> Generation:
    return Generation(text, (), prompt_tokens=0, finish_reason="stop", adapter=None, seconds=0.0)
