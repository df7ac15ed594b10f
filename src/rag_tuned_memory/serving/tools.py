"""Tools for models whose chat template knows none: told in the system message, called in text.

One form for training and serving, the one that SmolLM2 was trained with (https://hf.co/HuggingFaceTB/
SmolLM2-1.7B-Instruct, "Function calling"): ``<tool_call>[{"name": …, "arguments": {…}}]</tool_call>``, after what the
model says besides. A result comes back as the next user turn. Tools are told as signatures, not as JSON schemas, which
would take a small model's whole attention.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from rag_tuned_memory.serving.base import Message

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_RESULT_OPENING, _RESULT_CLOSING = "<tool_response>", "</tool_response>"
_STRING = r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u00[01][0-9a-f])*"'
"""JSON's, but for escapes that are never needed: half a surrogate pair is no text."""
_PATTERNS = {
    "string": _STRING,
    "integer": r"-?[0-9]{1,18}",
    "number": r"-?[0-9]{1,18}(\.[0-9]{1,18})?",
    "boolean": r"(true|false)",
    "null": "null",
}
_SCALAR = rf"({_STRING}|-?[0-9]{{1,18}}(\.[0-9]{{1,18}})?|true|false|null)"
_FLAT = rf"(\[({_SCALAR}(, {_SCALAR})*)?\]|\{{({_STRING}: {_SCALAR}(, {_STRING}: {_SCALAR})*)?\}})"
_ANY = rf"({_SCALAR}|{_FLAT})"
_SPECIAL = re.compile(r"([\\^$.|?*+()\[\]{}/-])")


class Tool(BaseModel):
    """What a model may call; ``parameters`` is a JSON schema of an object."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(min_length=1)
    description: str = ""
    parameters: dict[str, JsonValue] = {}

    @property
    def signature(self) -> str:
        """``read_logs(service: string, lines?: integer)``."""
        required = _required(self.parameters)
        parts = [f"{key}{'' if key in required else '?'}: {_type(schema)}" for key, schema in _fields(self.parameters)]
        return f"{self.name}({', '.join(parts)})"


class Call(BaseModel):
    """One call that a model asks for."""

    model_config = ConfigDict(frozen=True)

    name: str
    arguments: dict[str, JsonValue] = {}


class Said(BaseModel):
    """An answer read: the words, and the calls; ``bad`` is a call that cannot be read, as it was written."""

    model_config = ConfigDict(frozen=True)

    text: str
    calls: tuple[Call, ...] = ()
    bad: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation with tools. ``name`` is the tool's that a ``tool`` turn has the result of."""

    role: Literal["system", "user", "assistant", "tool"]
    text: str
    calls: tuple[Call, ...] = ()
    name: str | None = None


def conversation(turns: Sequence[Turn], tools: Sequence[Tool] = ()) -> tuple[Message, ...]:
    """Turns as the chat that a model is given: one system message, the tools first; results are the user's.

    What follows each other from one side is one message, which is what chat templates expect.
    """
    system = [told(tools), *(turn.text for turn in turns if turn.role == "system")]
    messages = [Message("system", "\n\n".join(part for part in system if part))] if any(system) else []
    for turn in turns:
        if turn.role == "system":
            continue
        role: Literal["user", "assistant"] = "assistant" if turn.role == "assistant" else "user"
        text = _text_of(turn)
        if messages and messages[-1].role == role:
            messages[-1] = Message(role, f"{messages[-1].content}\n{text}")
        else:
            messages.append(Message(role, text))
    return tuple(messages)


def _text_of(turn: Turn) -> str:
    if turn.role == "tool":
        return answered(turn.name, turn.text)
    return called(turn.text, turn.calls) if turn.role == "assistant" else turn.text


def told(tools: Sequence[Tool]) -> str:
    """The part of a system message that tells of the tools; empty where there are none."""
    if not tools:
        return ""
    lines = [
        f"- {tool.signature}{': ' if tool.description else ''}{' '.join(tool.description.split())}" for tool in tools
    ]
    return f"{_instructions()}\n" + "\n".join(lines)


def called(text: str, calls: Iterable[Call]) -> str:
    """An assistant's turn: what it says, and what it calls."""
    written = [f'{{"name": {_json(call.name)}, "arguments": {_json(call.arguments)}}}' for call in calls]
    call = f"{OPENING}[{', '.join(written)}]{CLOSING}" if written else ""
    return "\n".join(part for part in (text.strip(), call) if part)


def answered(name: str | None, text: str) -> str:
    """A tool's result as a user's turn; text inside cannot end it."""
    inner = text.replace(_RESULT_CLOSING, _RESULT_CLOSING.replace("<", "‹"))
    return f"{_RESULT_OPENING}{f'{name}: ' if name else ''}{inner}{_RESULT_CLOSING}"


def read(answer: str) -> Said:
    """What an assistant's turn says and calls. One call without brackets counts, and a missing end too."""
    text, opened, rest = answer.partition(OPENING)
    if not opened:
        return Said(text=answer.strip())
    written = rest.partition(CLOSING)[0].strip()
    try:
        given = json.loads(written)
        calls = tuple(Call.model_validate(one) for one in (given if isinstance(given, list) else [given]))
    except (ValueError, ValidationError, RecursionError):
        return Said(text=text.strip(), bad=written)
    return Said(text=text.strip(), calls=calls)


def pattern(tools: Sequence[Tool], *, required: bool = False, only: str | None = None, parallel: bool = False) -> str:
    """A regular expression of every answer that is well formed: words, or calls of these tools with their arguments.

    ``required``: it must call; ``only``: that tool; ``parallel``: several at once. Objects within arguments are held
    to one level of JSON.
    """
    chosen = [tool for tool in tools if only is None or tool.name == only]
    one = "(" + "|".join(_call_pattern(tool) for tool in chosen) + ")"
    calls = rf"{one}(, {one})*" if parallel else one
    call = rf"{_literal(OPENING)}\[{calls}\]{_literal(CLOSING)}"
    return call if required or only else rf"([^<]+|([^<]+\n)?{call})"


def _call_pattern(tool: Tool) -> str:
    return rf'\{{"name": {_literal(_json(tool.name))}, "arguments": {_object(tool.parameters)}\}}'


def _object(schema: Mapping[str, Any]) -> str:
    fields = _fields(schema)
    if not fields:
        return rf"\{{({_STRING}: {_ANY}(, {_STRING}: {_ANY})*)?\}}" if not schema else r"\{\}"
    needed = _required(schema)
    parts: list[str] = []
    for key, value in fields:
        pair = f"{_literal(_json(key))}: {_value(value)}"
        if key in needed:
            parts.append(f"{', ' if parts else ''}{pair}")
        elif parts:
            parts.append(f"(, {pair})?")
    if parts:
        return rf"\{{{''.join(parts)}\}}"
    # none is required: none or one of them, as a comma between several could not be placed by an expression
    return rf"\{{({'|'.join(f'{_literal(_json(key))}: {_value(value)}' for key, value in fields)})?\}}"


def _value(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return _ANY
    if isinstance(schema.get("enum"), list):
        return "(" + "|".join(_literal(_json(one)) for one in schema["enum"]) + ")"
    kind = schema.get("type")
    if kind == "array":
        item = _value(schema.get("items"))
        return rf"\[({item}(, {item})*)?\]"
    if kind == "object":
        return _object(schema)
    return _PATTERNS.get(kind, _ANY) if isinstance(kind, str) else _ANY


def _fields(schema: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Names and schemas, those that are required first."""
    properties, needed = schema.get("properties"), _required(schema)
    found = properties.items() if isinstance(properties, Mapping) else ()
    return sorted(found, key=lambda field: field[0] not in needed)


def _required(schema: Mapping[str, Any]) -> frozenset[str]:
    required = schema.get("required")
    return frozenset(required) if isinstance(required, list) else frozenset()


def _type(schema: Any) -> str:
    if isinstance(schema, Mapping):
        if isinstance(schema.get("enum"), list):
            return " | ".join(_json(one) for one in schema["enum"])
        if isinstance(schema.get("type"), str):
            return str(schema["type"])
    return "any"


def _literal(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@cache
def _instructions() -> str:
    return files("rag_tuned_memory.serving").joinpath("prompts/tools.txt").read_text("utf-8").strip()
