"""LangChain's tools and tool calls in the form in which a served model is told of them and writes them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import InvalidToolCall, ToolCall
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ValidationError

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.tools import OPENING, Said, Tool, pattern

Bindable = dict[str, Any] | type | Callable[..., Any] | BaseTool
Choice = str | bool | dict[str, Any] | None

_MAY, _MUST, _NEVER = ("auto", None), ("any", "required", True), ("none", False)


def as_openai(tools: Sequence[Bindable]) -> list[dict[str, Any]]:
    """Tools in the form in which LangChain binds and traces them.

    Raises:
        InvalidInput: a tool that only its own provider can run, or one without a name.
    """
    bound = [convert_to_openai_tool(tool) for tool in tools]
    served_tools(bound)
    return bound


def served_tools(bound: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Bound tools as the served model is told of them."""
    return tuple(_served(tool, f"tools.{position}") for position, tool in enumerate(bound))


def _served(tool: Mapping[str, Any], place: str) -> Tool:
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InvalidInput(
            f"a tool of type {tool.get('type')!r} is run by its own provider's model",
            place=place,
            remedy="Bind functions, tools of LangChain, or schemas.",
        )
    try:
        return Tool.model_validate(
            {
                "name": function.get("name"),
                "description": function.get("description") or "",
                "parameters": function.get("parameters") or {},
            }
        )
    except ValidationError as error:
        raise InvalidInput(f"no tool: {error.errors()[0]['msg']}", place=place) from error


def answer_pattern(tools: Sequence[Tool], choice: Choice, *, parallel: bool) -> str | None:
    """What the whole answer must match; None where there is nothing to hold it to.

    ``choice`` is LangChain's ``tool_choice``: "auto" (words or calls), "any" or "required" (a call), "none", a tool's
    name, or OpenAI's ``{"type": "function", "function": {"name": …}}``.

    Raises:
        InvalidInput: a call is required and there are no tools, or a tool is named that is not there.
    """
    only = _named(choice)
    if choice in _NEVER or (not tools and only is None and choice in _MAY):
        return None
    names = [tool.name for tool in tools]
    if only is not None and only not in names:
        raise InvalidInput(f"no tool {only!r}", place="tool_choice", remedy=f"There are: {', '.join(names) or 'none'}.")
    if not tools:
        raise InvalidInput("a call is required, and there are no tools", place="tool_choice")
    return pattern(tools, required=choice in _MUST, only=only, parallel=parallel)


def may_call(tools: Sequence[Any], choice: Choice) -> bool:
    """Whether the model is told of the tools at all."""
    return bool(tools) and choice not in _NEVER


def _named(choice: Choice) -> str | None:
    if isinstance(choice, dict):
        name = choice.get("function", choice).get("name") if isinstance(choice.get("function", choice), dict) else None
        if not isinstance(name, str):
            raise InvalidInput(f"names no tool: {choice!r}", place="tool_choice")
        return name
    return choice if isinstance(choice, str) and choice not in (*_MAY, *_MUST, *_NEVER) else None


def calls_of(said: Said) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """The calls of an answer with ids of their own, and what was meant as one and cannot be read."""
    calls = [ToolCall(type="tool_call", name=one.name, args=dict(one.arguments), id=_new_id()) for one in said.calls]
    return calls, [] if said.bad is None else [_invalid(said.bad)]


def _invalid(written: str) -> InvalidToolCall:
    # with the mark in front LangChain never takes it for JSON when it puts chunks together
    args, error = f"{OPENING}{written}", "not the JSON of a call"
    return InvalidToolCall(type="invalid_tool_call", name=None, args=args, id=_new_id(), error=error)


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
