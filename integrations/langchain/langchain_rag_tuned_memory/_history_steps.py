"""A conversation's messages as steps of one episode, and back: what is read is what was written.

Each message has one step that carries it (text, and everything else of it in ``metadata``); an answer's tool calls
follow as steps of their own, so that they are recalled and learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage, message_to_dict, messages_from_dict
from pydantic import JsonValue

from langchain_rag_tuned_memory._recording import Called, steps_of, text_of
from rag_tuned_memory import Step, StepKind, Trajectory
from rag_tuned_memory.capture import steps as capture
from rag_tuned_memory.recall.prompt import strip_injected

SOURCE = "langchain-chat"
"""The ``source`` of these episodes; ``source_id`` is the session's id."""
_CARRIED = "langchain_message"
_NO_TEXT = " "
"""A step must hold something; white space is no passage."""


def to_steps(messages: Iterable[BaseMessage], stored: Trajectory | None) -> list[Step]:
    """The steps of messages that are added to what is stored of a conversation."""
    made: dict[str, Called] = _calls(stored)
    found: list[Step] = []
    for message in messages:
        ref = uuid4().hex  # the same message may be said twice
        if isinstance(message, AIMessage):
            made |= {
                str(call["id"]): Called(f"{call['id']}@{ref}", call["name"])
                for call in message.tool_calls
                if call["id"]
            }
        found += _steps(message, ref, made)
    return found


def to_messages(trajectory: Trajectory) -> list[tuple[str, BaseMessage]]:
    """The messages of a conversation in order, each with the ``ref`` of the step that carries it."""
    return [(step.ref or "", _message(step)) for step in trajectory.steps if _CARRIED in step.metadata]


def _calls(stored: Trajectory | None) -> dict[str, Called]:
    """The calls that were made before, the last one for each id that the model gave."""
    every = [step.call_id for step in stored.steps if step.kind is StepKind.TOOL_CALL] if stored else []
    return {one.rpartition("@")[0]: Called(one) for one in every if one}


def _steps(message: BaseMessage, ref: str, made: Mapping[str, Called]) -> Iterator[Step]:
    every = list(steps_of(message, ref, lambda call: made.get(call, Called(f"{call}@{ref}"))))
    kind = StepKind.TOOL_RESULT if isinstance(message, ToolMessage) else StepKind.MESSAGE
    carrier = next((step for step in every if step.kind is kind), None)
    if carrier is None:
        carrier = Step(kind=kind, text=_NO_TEXT, ref=ref)
        every.insert(0, carrier)
    for step in every:
        yield step.model_copy(update=_carrying(message, step, ref)) if step is carrier else step


def _carrying(message: BaseMessage, step: Step, ref: str) -> dict[str, Any]:
    text = strip_injected(step.text)
    data = message_to_dict(message)
    if isinstance(message.content, str) and strip_injected(message.content) == text:
        data["data"].pop("content")
    kept: dict[str, JsonValue] = {"type": data["type"], "data": _clean(capture.jsonable(data["data"]))}
    return {"ref": ref, "text": text if text.strip() or step.error else text or _NO_TEXT, "metadata": {_CARRIED: kept}}


def _message(step: Step) -> BaseMessage:
    carried = step.metadata[_CARRIED]
    assert isinstance(carried, Mapping)
    data = carried["data"]
    assert isinstance(data, Mapping)
    return messages_from_dict([{"type": carried["type"], "data": {"content": step.text, **data}}])[0]


def _clean(value: JsonValue) -> JsonValue:
    """Without recalled text, which is not said by anybody."""
    if isinstance(value, str):
        return strip_injected(value)
    if isinstance(value, dict):
        return {key: _clean(one) for key, one in value.items()}
    return [_clean(one) for one in value] if isinstance(value, list) else value


def goal_of(messages: Sequence[BaseMessage]) -> str:
    """What a conversation is about: what is said first."""
    said = next((text for one in messages if one.type == "human" and (text := text_of(one).strip())), "")
    return capture.storable(said)[:2000]
