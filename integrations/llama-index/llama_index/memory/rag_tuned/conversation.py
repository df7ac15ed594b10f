"""A chat of LlamaIndex as the conversation that a served model is given: its turns, its tools, what it may answer."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool

from llama_index.memory.rag_tuned import messages as read
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.recall.prompt import strip_injected
from rag_tuned_memory.serving.tools import Call, Said, Tool, Turn, pattern

ToolChoice = str | bool | Mapping[str, Any] | None
_MAY, _MUST, _NEVER = ("auto", None), ("any", "required", True), ("none", False)
_OBSERVATION = "Observation:"
_READ = ("text", "tool_call", "thinking", "cache", "citable", "citation")


def turns(chat: Sequence[ChatMessage]) -> tuple[Turn, ...]:
    """The messages in order; a tool's result says which tool gave it.

    Raises:
        InvalidInput: no messages, a role that a model has not, or a picture or other file; names the message.
    """
    if not chat:
        raise InvalidInput("a conversation needs at least one message", place="messages")
    names = {call.id: call.tool for message in chat for call in read.asked(message) if call.id}
    return tuple(_turn(message, names, f"messages.{position}") for position, message in enumerate(chat))


def _turn(message: ChatMessage, names: Mapping[str, str], place: str) -> Turn:
    media = [block.block_type for block in message.blocks if block.block_type not in _READ]
    if media:
        raise InvalidInput(f"the model reads text only, and here is a block of type {media[0]!r}", place=place)
    text = read.text_of(message)
    if read.is_instruction(message):
        return Turn("system", text)
    if read.is_result(message):
        told = message.additional_kwargs
        return Turn("tool", text, name=names.get(told.get("tool_call_id", "")) or told.get("name"))
    if read.is_user(message):
        return Turn("user", text)
    if message.role.value in ("assistant", "chatbot", "model"):
        calls = tuple(Call(name=call.tool, arguments=call.arguments) for call in read.asked(message))
        return Turn("assistant", text, calls)
    raise InvalidInput(f"the model takes no message of role {message.role.value!r}", place=place)


def question_of(chat: Sequence[ChatMessage]) -> str:
    """What the last user's message asks, without what a memory had put into it; empty where there is none.

    A ReAct agent tells a tool's result as a user's message; that is no question.
    """
    for message in reversed(chat):
        if read.is_user(message) and not (text := read.text_of(message)).startswith(_OBSERVATION):
            return strip_injected(text).strip()
    return ""


def as_openai(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """Tools in the form in which LlamaIndex gives and traces them."""
    return [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]


def served(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Tools in OpenAI's form as a served model is told of them.

    Raises:
        InvalidInput: one is in another form, or has no name.
    """
    return tuple(_served(tool, f"tools.{position}") for position, tool in enumerate(tools))


def _served(tool: Any, place: str) -> Tool:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidInput("no tool in OpenAI's form, with a function and its name", place=place)
    told = function.get("description") or ""
    return Tool(name=function["name"], description=told, parameters=function.get("parameters") or {})


def may_call(tools: Sequence[Any], choice: ToolChoice) -> bool:
    """Whether the model is told of the tools at all."""
    return bool(tools) and choice not in _NEVER


def answer_pattern(tools: Sequence[Tool], choice: ToolChoice, *, parallel: bool) -> str | None:
    """What the whole answer must match; None where there is nothing to hold it to.

    ``choice`` is ``auto`` (words or calls), ``required`` (a call), ``none``, a tool's name, or OpenAI's
    ``{"type": "function", "function": {"name": …}}``.

    Raises:
        InvalidInput: a call is required and there are no tools, or a tool is named that is not there.
    """
    if choice in _NEVER or (not tools and choice in _MAY):
        return None
    names = [tool.name for tool in tools]
    only = None if choice in (*_MAY, *_MUST) else _named(choice)
    if only is not None and only not in names:
        raise InvalidInput(f"no tool is named {only!r}; there are {', '.join(names) or 'none'}", place="tool_choice")
    if not tools:
        raise InvalidInput("a call is required, and there are no tools", place="tool_choice")
    return pattern(tools, required=choice in _MUST, only=only, parallel=parallel)


def _named(choice: ToolChoice) -> str:
    function = choice.get("function", choice) if isinstance(choice, Mapping) else {"name": choice}
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise InvalidInput(f"names no tool: {choice!r}", place="tool_choice")
    return name


def written(said: Said) -> list[dict[str, Any]]:
    """The calls of an answer, each with an id of its own, in the form that every version of LlamaIndex reads."""
    return [
        {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for call in said.calls
    ]


def selections(message: ChatMessage) -> list[ToolSelection]:
    """The calls of an assistant's message, for the agent that makes them."""
    return [
        ToolSelection(tool_id=call.id or "", tool_name=call.tool, tool_kwargs=call.arguments)
        for call in read.asked(message)
    ]
