"""What one call of the chat model asks, and of whom. Pure: asking is the chat model's, which has two flavours of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langchain_rag_tuned_memory._served_turns import last_question, turns
from langchain_rag_tuned_memory._tool_calling import answer_pattern, may_call, served_tools
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.memory import Memory
from rag_tuned_memory.routing.base import Routing
from rag_tuned_memory.routing.conversation import Turn, directed
from rag_tuned_memory.serving.tools import Tool, conversation
from rag_tuned_memory.store.base import Filter
from rag_tuned_memory.trajectory import describe

ROUTE, BASE = "route", "base"
"""Names that are no adapter's: the memory's routing chooses; the base model."""
PER_CALL = ("model", "k", "token_budget", "where", "max_tokens", "temperature", "seed")
"""Options that are the chat model's fields and may be given with each call."""
_ANSWER_TOKENS, _CONVERSATION_TOKENS = 48, 256


class CallOptions(BaseModel):
    """What may be given with each call; the chat model's own fields are the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    model: str = Field(min_length=1)
    k: int = Field(ge=1)
    token_budget: int = Field(ge=0)
    where: Filter | None
    max_tokens: int | None = Field(ge=1)
    temperature: float = Field(ge=0)
    seed: int | None
    stop: tuple[str, ...]
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str | bool | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    strict: bool | None = None
    """Accepted and not needed: calls always keep to the tools' schemas."""


def call_options(given: dict[str, Any]) -> CallOptions:
    """The options of one call. Raises InvalidInput naming the one that cannot be."""
    try:
        return CallOptions.model_validate(given)
    except ValidationError as error:
        raise InvalidInput(describe(error), remedy=f"Allowed are {', '.join(CallOptions.model_fields)}.") from error


def base_name(memory: Memory) -> str:
    """What the base model is called, as far as the settings tell."""
    return memory.settings.backend_model or Path(memory.settings.model).name


def base_names(memory: Memory) -> frozenset[str]:
    """All names that stand for the base model."""
    return frozenset((BASE, memory.settings.model, base_name(memory)))


def holds_patterns(memory: Memory) -> bool:
    """Whether the backend can hold an answer to a pattern; plain OpenAI endpoints cannot."""
    return not memory.settings.backend.startswith("openai+")


@dataclass(frozen=True)
class Asked:
    """One call: a conversation, and how it is to be answered."""

    messages: tuple[BaseMessage, ...]
    options: CallOptions
    base_names: frozenset[str]
    held: bool = True
    """Whether the backend can hold an answer to a pattern."""

    @property
    def by_route(self) -> bool:
        """Whether the memory's routing chooses who answers."""
        return self.options.model == ROUTE

    @property
    def plain(self) -> bool:
        """Whether it is one question and nothing else, which the memory answers in the form that it was taught."""
        alone = len(self.messages) == 1 and isinstance(self.messages[0], HumanMessage)
        return self.by_route and alone and not self.acting

    @property
    def acting(self) -> bool:
        """Whether the model has tools to call."""
        return may_call(self.options.tools, self.options.tool_choice)

    @cached_property
    def question(self) -> str:
        """What the memory is asked."""
        return last_question(self.messages)

    @property
    def recalling(self) -> dict[str, Any]:
        """Arguments of ``Memory.decide``."""
        return {"k": self.options.k, "token_budget": self.options.token_budget, "where": self.options.where}

    @property
    def answering(self) -> dict[str, Any]:
        """Arguments of ``Memory.answer``."""
        return {**self.recalling, "max_new_tokens": self.options.max_tokens or _ANSWER_TOKENS}

    def plan(self, routing: Routing | None) -> Plan:
        """What is asked of which model; ``routing`` where the memory chose.

        Raises:
            InvalidInput: a message or a tool that the model cannot be told of, or a call required of no tool.
        """
        options = self.options
        tools = served_tools(options.tools) if self.acting else ()
        messages = conversation(turns(self.messages), tools)
        if routing is None:
            adapter = None if options.model in self.base_names else options.model
            turn = Turn(messages, adapter)
        else:
            turn = directed(messages, routing.decision, routing.recollection, acting=self.acting)
        generating = {
            "messages": turn.messages,
            "adapter": turn.adapter,
            "max_new_tokens": options.max_tokens or _CONVERSATION_TOKENS,
            "temperature": options.temperature,
            "seed": options.seed,
            "stop": options.stop,
            "pattern": self._pattern(tools),
        }
        return Plan(turn, generating, routing)

    def _pattern(self, tools: tuple[Tool, ...]) -> str | None:
        options = self.options
        if not self.held and options.tool_choice in (None, "auto"):
            return None
        return answer_pattern(tools, options.tool_choice, parallel=options.parallel_tool_calls)


@dataclass(frozen=True)
class Plan:
    """A conversation, decided: ``generating`` are the arguments of ``Memory.generate``."""

    turn: Turn
    generating: dict[str, Any]
    routing: Routing | None
