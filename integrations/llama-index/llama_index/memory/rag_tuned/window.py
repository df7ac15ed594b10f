"""The short-term window: how much of a session a model is shown, and where recalled text stands in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock

from llama_index.memory.rag_tuned.messages import asked, copied, is_instruction, is_result, is_user, text_of
from rag_tuned_memory.capture.steps import jsonable, storable

Insert = Literal["user", "system"]
"""Where recalled text goes: into the last user message, or into a system message."""

CountTokens = Callable[[Sequence[str]], Sequence[int]]

_MEDIA_TOKENS = {"image": 256, "audio": 256, "video": 256, "document": 2048}


class Kept(NamedTuple):
    """A message and how many tokens it takes."""

    message: ChatMessage
    tokens: int


def kept(message: ChatMessage, count: CountTokens) -> Kept:
    """A copy of ``message`` with its tokens counted; pictures, sounds and files count as LlamaIndex estimates them."""
    calls = asked(message)
    told = text_of(message) + (json.dumps(jsonable([list(call) for call in calls])) if calls else "")
    media = sum(_MEDIA_TOKENS.get(block.block_type, 0) for block in message.blocks)
    return Kept(copied(message), media + (int(count([storable(told)])[0]) if told else 0))


def start_of_window(messages: Sequence[Kept], limit: int) -> int:
    """The place from which on messages are shown.

    Whole turns, newest first, as long as all fit into ``limit`` tokens; the newest turn is always whole, so that the
    question is never lost and no tool result stands without its call.
    """
    start = _start(messages, limit, is_user)
    if start is None:  # nobody asked anything
        start = _start(messages, limit, lambda message: not is_result(message))
    return start or 0


def _start(messages: Sequence[Kept], limit: int, begins: Callable[[ChatMessage], bool]) -> int | None:
    """As ``start_of_window``, where turns begin as ``begins`` says; None where none does."""
    start, used = None, 0
    for place in range(len(messages) - 1, -1, -1):
        used += messages[place].tokens
        if used > limit and start is not None:
            return start
        if begins(messages[place].message):
            start = place
    return start if start is None else 0


def shown(messages: Sequence[Kept], start: int) -> list[ChatMessage]:
    """Copies of the messages from ``start`` on, after the instructions that the session began with."""
    lead = [one.message for one in _leading(messages) if is_instruction(one.message)]
    rest = [one.message for one in messages[max(start, len(lead)) :]]
    return [copied(message) for message in (*lead, *rest)]


def with_recalled(messages: list[ChatMessage], recalled: str, insert: Insert, *, asked_last: bool) -> list[ChatMessage]:
    """``messages`` (changed) with recalled text in them, as a content block of its own.

    ``asked_last``: the last user message is what was asked; else there is no user message that it belongs to.
    """
    if not recalled:
        return messages
    block = TextBlock(text=recalled)
    if insert == "user" and asked_last:
        last = next(message for message in reversed(messages) if is_user(message))
        last.blocks = [block, *last.blocks]
        return messages
    if messages and messages[0].role == MessageRole.SYSTEM:
        messages[0].blocks = [*messages[0].blocks, block]
        return messages
    return [ChatMessage(role=MessageRole.SYSTEM, blocks=[block]), *messages]


def _leading(messages: Sequence[Kept]) -> Sequence[Kept]:
    for place, one in enumerate(messages):
        if not is_instruction(one.message):
            return messages[:place]
    return messages
