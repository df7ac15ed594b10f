"""What callbacks show of a run: its messages, what was asked, the namespace and thread in its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_rag_tuned_memory._equipment import Equipment
from langchain_rag_tuned_memory._recording import text_of
from langchain_rag_tuned_memory._turns import STATE_KEY, is_summary
from rag_tuned_memory.recall.prompt import strip_injected

_ASKING = ("input", "question", "query", "text")
"""Inputs of a chain that tell what is asked, the most telling first; others may hold a prompt's further parts."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run was asked: the text and the id of the human message, as far as they are known."""

    text: str = ""
    id: str | None = None


def messages_in(value: Any) -> list[BaseMessage]:
    """The messages of a chain's input or output, of a prompt or of a graph's state."""
    if isinstance(value, BaseMessage):
        return [value]
    if isinstance(value, PromptValue):
        return value.to_messages()
    if isinstance(value, Mapping):
        return messages_in(value.get("messages"))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [one for one in value if isinstance(one, BaseMessage)]
    return messages_in(getattr(value, "messages", None)) if hasattr(value, "messages") else []


def asked_in(messages: Sequence[BaseMessage]) -> Asked | None:
    """The last thing that somebody asked; what stands in the place of earlier messages does not count."""
    humans = (one for one in reversed(messages) if isinstance(one, HumanMessage) and not is_summary(one))
    last = next(humans, None)
    return None if last is None else Asked(text_of(last), last.id)


def asked_of_chain(inputs: Any) -> Asked:
    """What a chain is asked that takes no messages; empty where its input does not tell."""
    if isinstance(inputs, str):
        return Asked(inputs)
    if not isinstance(inputs, Mapping):
        return Asked()
    texts = [value for value in inputs.values() if isinstance(value, str)]
    named = next((inputs[name] for name in _ASKING if isinstance(inputs.get(name), str)), None)
    return Asked(named if named is not None else texts[0] if len(texts) == 1 else "")


def takes_messages(inputs: Any) -> bool:
    """Whether a run's input is a conversation, also one that says so in tuples (``("user", "…")``)."""
    return bool(messages_in(inputs)) or (isinstance(inputs, Mapping) and bool(inputs.get("messages")))


def goes_on(inputs: Any) -> bool:
    """Whether a graph is resumed: its input is nothing, or a command."""
    return inputs is None or (hasattr(inputs, "resume") and hasattr(inputs, "goto"))


def kept_turn(inputs: Any) -> str | None:
    """The key of the episode that this package's middleware records in the same run, from a graph's state."""
    kept = inputs.get(STATE_KEY) if isinstance(inputs, Mapping) else None
    found = kept.get("source_id") if isinstance(kept, Mapping) else None
    return found if isinstance(found, str) else None


def since(messages: Sequence[BaseMessage], asked: Asked) -> list[BaseMessage]:
    """The messages from the one that asked on, those without an id left out; none where it is not among them."""
    place = next((place for place, one in enumerate(messages) if one.id is not None and one.id == asked.id), None)
    if place is None:
        return []
    return [one for one in messages[place:] if one.id is not None and not is_summary(one)]


def equipment_of(messages: Sequence[BaseMessage], tools: Sequence[Any]) -> Equipment:
    """What a model was equipped with: tools that can be told in OpenAI's form, the system message without recall."""
    system = next((one for one in messages if isinstance(one, SystemMessage)), None)
    told = strip_injected(text_of(system)).strip() if system is not None else ""
    return Equipment([one for one in tools if _can_be_told(one)], SystemMessage(told) if told else None)


def _can_be_told(tool: Any) -> bool:
    if not isinstance(tool, Mapping):
        return False
    try:
        convert_to_openai_tool(dict(tool))
    except (ValueError, TypeError, KeyError):
        return False
    return True


def answer_of(outputs: Any) -> str:
    """What a chain that called no model gave back, where it is text."""
    messages = [one for one in messages_in(outputs) if isinstance(one, AIMessage)]
    if messages:
        return text_of(messages[-1])
    if isinstance(outputs, Mapping):
        texts = [value for value in outputs.values() if isinstance(value, str)]
        outputs = next((outputs[name] for name in ("output", "answer", "result") if name in outputs), None) or (
            texts[-1] if len(texts) == 1 else ""
        )
    return outputs if isinstance(outputs, str) else ""
