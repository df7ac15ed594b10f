"""LangChain messages as turns of a conversation with a served model."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.tools import Call, Turn

_NOT_SAID = {"reasoning", "thinking", "tool_use", "tool_call", "function_call", "invalid_tool_call", "tool_call_chunk"}
"""Blocks that are told elsewhere (as ``tool_calls``), or not told to a model again."""


def turns(messages: Sequence[BaseMessage]) -> tuple[Turn, ...]:
    """The messages as turns, in order.

    Raises:
        InvalidInput: no messages, one of an unknown kind, or content that is no text; names the message.
    """
    if not messages:
        raise InvalidInput("a conversation needs at least one message", place="messages")
    names = {
        call["id"]: call["name"]
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
    }
    return tuple(_turn(message, names, f"messages.{position}") for position, message in enumerate(messages))


def last_question(messages: Sequence[BaseMessage]) -> str:
    """The text of the last human message, which is what the memory is asked.

    Raises:
        InvalidInput: there is none.
    """
    for position in range(len(messages) - 1, -1, -1):
        if isinstance(messages[position], HumanMessage):
            return text_of(messages[position], f"messages.{position}")
    raise InvalidInput(
        "no human message says what the memory is asked",
        place="messages",
        remedy='Add one, or name a model: model="base" takes the conversation as it is.',
    )


def text_of(message: BaseMessage, place: str, *, between: str = "\n") -> str:
    """What a message says, its blocks of text joined. Raises InvalidInput for images and the like."""
    if isinstance(message.content, str):
        return message.content
    parts: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text" and isinstance(block.get("text"), str):
            parts.append(block["text"])
        elif block.get("type") not in _NOT_SAID:
            raise InvalidInput(f"the model reads text only, not a block of type {block.get('type')!r}", place=place)
    return between.join(part for part in parts if part)


def _turn(message: BaseMessage, names: dict[str | None, str], place: str) -> Turn:
    if isinstance(message, SystemMessage):
        return Turn("system", text_of(message, place, between="\n\n"))
    text = text_of(message, place)
    if isinstance(message, HumanMessage):
        return Turn("user", text)
    if isinstance(message, AIMessage):
        calls = tuple(Call(name=call["name"], arguments=call["args"]) for call in message.tool_calls)
        return Turn("assistant", text, calls)
    if isinstance(message, ToolMessage):
        return Turn("tool", text, name=message.name or names.get(message.tool_call_id))
    if isinstance(message, ChatMessage) and message.role in ("system", "user", "assistant"):
        return Turn(message.role, text)  # type: ignore[arg-type]
    raise InvalidInput(
        f"the model takes no {type(message).__name__}",
        place=place,
        remedy="Allowed are system, human, AI and tool messages.",
    )
