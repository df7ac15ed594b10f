"""Chat messages: copied, told as text, made into steps. Nothing here keeps or changes a message that it is given."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from llama_index.core.base.llms.types import ChatMessage

from llama_index.memory.rag_tuned.calls import CallIds
from rag_tuned_memory.capture import steps as capture
from rag_tuned_memory.trajectory import Step, StepKind

SOURCE = "llama-index"
"""The ``source`` of every episode that is recorded here."""

_INSTRUCTIONS = ("system", "developer")
_RESULTS = ("tool", "function")
_MEDIA = ("image", "audio", "video", "document")
_MOST_DIGEST = 16


class Asked(NamedTuple):
    """A tool call in a message; ``id`` is the model's own."""

    id: str | None
    tool: str
    arguments: Any


def copied(message: ChatMessage) -> ChatMessage:
    """A copy that shares nothing that can be changed; it is made in microseconds, which ``deepcopy`` is not."""
    new = message.__copy__()
    own = vars(new)  # pydantic's own way to set a field takes longer than the rest
    own["blocks"] = [_copied_block(block) for block in message.blocks]
    own["additional_kwargs"] = _copied_value(message.additional_kwargs)
    return new


def _copied_block(block: Any) -> Any:
    new = block.__copy__()
    for name, value in vars(new).items():
        if isinstance(value, dict | list):
            vars(new)[name] = _copied_value(value)
    return new


def _copied_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied_value(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_copied_value(one) for one in value]
    return value if value is None or isinstance(value, str | int | float) else copy.deepcopy(value)


def is_user(message: ChatMessage) -> bool:
    """Whether a user said it."""
    return message.role.value == "user"


def is_instruction(message: ChatMessage) -> bool:
    """Whether it tells the model how to behave, and is nothing that happened."""
    return message.role.value in _INSTRUCTIONS


def is_result(message: ChatMessage) -> bool:
    """Whether it is what a tool gave back."""
    return message.role.value in _RESULTS


def is_answer(message: ChatMessage) -> bool:
    """Whether the assistant is done with it: it calls no tool."""
    return not (is_user(message) or is_instruction(message) or is_result(message) or asked(message))


def text_of(message: ChatMessage) -> str:
    """What a reader sees of a message: its text, and a word for each picture, sound or file."""
    return "\n".join(part for block in message.blocks if (part := _told(block)))


def asked(message: ChatMessage) -> list[Asked]:
    """The tool calls of a message: its blocks, or the list that older integrations keep in ``additional_kwargs``."""
    blocks = [
        Asked(block.tool_call_id, block.tool_name, _arguments(block.tool_kwargs))
        for block in message.blocks
        if block.block_type == "tool_call"
    ]
    return blocks or list(_older_calls(message.additional_kwargs.get("tool_calls")))


class MessageSteps:
    """The steps of one episode from its messages; each message has a ``ref`` of its place and its content.

    The same messages in the same order always give the same refs and call ids, so that a replay is no new step.
    """

    def __init__(self) -> None:
        self._place = 0
        self._calls = CallIds()

    def of(self, message: ChatMessage) -> list[Step]:
        """The steps that a message tells; none for an empty one and for instructions."""
        if is_instruction(message):
            return []
        text, calls = text_of(message), asked(message)
        ref = self._ref(message.role.value, text, [list(call) for call in calls])
        if is_result(message):
            call_id, tool = self._calls.answered(message.additional_kwargs.get("tool_call_id"))
            return [capture.tool_result(tool or message.additional_kwargs.get("name"), text, call_id=call_id, ref=ref)]
        actor = "user" if is_user(message) else "assistant"
        found = [thought(thinking(message), ref=ref), capture.message(actor, text, ref=ref)]
        found += [
            capture.tool_call(call.tool, call.arguments, call_id=self._call_id(call), ref=ref, actor=actor)
            for call in calls
        ]
        return [step for step in found if step is not None]

    def _call_id(self, call: Asked) -> str:
        return self._calls.called(call.id, call.tool, capture.jsonable(call.arguments))

    def _ref(self, role: str, text: str, calls: list[Any]) -> str:
        self._place += 1
        return ref_of(self._place, role, text, calls)


def ref_of(place: int, *content: Any) -> str:
    """The ``ref`` of the message at a place of an episode."""
    told = json.dumps(capture.jsonable(content), sort_keys=True, ensure_ascii=False)
    return f"{place}-{hashlib.sha256(told.encode()).hexdigest()[:_MOST_DIGEST]}"


def thought(text: str, *, ref: str, actor: str = "assistant") -> Step | None:
    """What the model thought; None where that is empty."""
    step = capture.message(actor, text, ref=ref)
    return step.model_copy(update={"kind": StepKind.THOUGHT}) if step else None


def thinking(message: ChatMessage) -> str:
    """What a reasoning model thought before it spoke."""
    blocks = [block for block in message.blocks if block.block_type == "thinking"]
    return "\n".join(block.content for block in blocks if block.content)


def _told(block: Any) -> str:
    kind = block.block_type
    if kind == "text":
        return str(block.text or "")
    if kind == "citable":
        return "\n".join(part for one in block.content if (part := _told(one)))
    if kind == "citation":
        return _told(block.cited_content)
    if kind not in _MEDIA:
        return ""  # thoughts and calls are steps of their own, a cache point is nothing
    url = str(getattr(block, "url", None) or "")
    name = getattr(block, "title", None) or (url if url.startswith(("http://", "https://")) else "")
    return f"[{kind}: {name}]" if name else f"[{kind}]"


def _older_calls(calls: Any) -> Iterator[Asked]:
    """Calls in the form of OpenAI's API, as objects or as mappings."""
    for call in calls if isinstance(calls, list | tuple) else ():
        function = _part(call, "function")
        name = _part(function, "name") or _part(call, "name")
        if name:
            yield Asked(_part(call, "id"), str(name), _arguments(_part(function, "arguments")))


def _part(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, dict) else getattr(thing, name, None)


def _arguments(given: Any) -> Any:
    """Arguments as a mapping where they are one, also when they are still JSON text."""
    if isinstance(given, str):
        try:
            read = json.loads(given) if given.strip() else {}
        except ValueError:
            return {"input": given}
        return read if isinstance(read, dict) else {"input": given}
    return {} if given is None else given
