"""Imports chats in OpenAI's messages form, with tool calls, and tau-bench's recorded runs.

A record is a list of messages, an object with ``messages`` (and optionally ``id`` and ``metadata``), or one of
tau-bench's (https://github.com/sierra-research/tau-bench) with ``traj``, ``task_id``, ``trial`` and ``reward``. A
message's roles and fields are those of OpenAI's chat completions API.

System messages are instructions, not events, and one policy is often repeated in every record: they become no steps;
``metadata["system_prompt_sha256"]`` tells which records shared one. Of tau-bench's ``info`` nothing is taken: it holds
the task's hidden instruction and solution, which the agent never saw.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

from rag_tuned_memory.errors import InvalidTrajectory
from rag_tuned_memory.formats.base import MAX_STEP_BYTES, ErrorPolicy, OnError, OnSkip, import_records
from rag_tuned_memory.formats.records import loads
from rag_tuned_memory.trajectory import StepKind, Trajectory, validate_namespace

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_CURRENT_TIME = re.compile(r"The current time is (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) EST\b")
_EST = timezone(timedelta(hours=-5))


def read_openai_chat(
    path: Path,
    namespace: str,
    *,
    on_error: OnError = "stop",
    on_skip: OnSkip | None = None,
    max_step_bytes: int = MAX_STEP_BYTES,
) -> Iterator[Trajectory]:
    """Each record of ``path`` as a trajectory; see the module for the forms and ``Importer`` for the arguments.

    The goal is the first user message. A tool result whose text begins with ``Error:`` has failed: its step's
    ``error`` is set. Tool arguments that are no JSON object are kept as the step's text.
    """
    convert = partial(_trajectories, validate_namespace(namespace))
    return import_records(path, convert, ErrorPolicy(on_error, on_skip), max_step_bytes=max_step_bytes)


def is_chat_record(record: Any) -> bool:
    """Whether a record has one of the forms that this module reads."""
    if isinstance(record, Mapping):
        return "messages" in record or "traj" in record
    return isinstance(record, list) and bool(record) and isinstance(record[0], Mapping) and "role" in record[0]


def _trajectories(namespace: str, record: Any) -> Iterator[Trajectory]:
    fields = {"messages": record} if isinstance(record, list) else record
    if not isinstance(fields, Mapping) or not ("messages" in fields or "traj" in fields):
        raise InvalidTrajectory("not a chat: expected a list of messages, or an object with 'messages' or 'traj'")
    data = _tau_bench(fields) if "traj" in fields else _plain(fields)
    yield Trajectory.parse({"namespace": namespace, **data})


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    messages = _messages(record, "messages")
    identifier = record.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, str | int | None):
        raise InvalidTrajectory("must be text or an integer", place="id")
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise InvalidTrajectory("must be an object", place="metadata")
    return {
        "source": "openai-chat",
        "source_id": None if identifier is None else str(identifier),
        "steps": _steps(messages, "messages"),
        "goal": _goal(messages),
        "metadata": {**metadata, **_system_prompt(messages)},
    }


def _tau_bench(record: Mapping[str, Any]) -> dict[str, Any]:
    messages = _messages(record, "traj")
    task, trial, reward = (record.get(key) for key in ("task_id", "trial", "reward"))
    for name, value in (("task_id", task), ("trial", trial)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidTrajectory("must be an integer", place=name)
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        raise InvalidTrajectory("must be a number", place="reward")
    return {
        "source": "tau-bench",
        "source_id": f"task {task} trial {trial}",
        "steps": _steps(messages, "traj"),
        "goal": _goal(messages),
        "outcome": {"success": reward == 1.0, "score": reward},
        "started_at": _told_time(messages),
        "metadata": {"task_id": task, "trial": trial, **_system_prompt(messages)},
    }


def _messages(record: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    messages = record[key]
    if not isinstance(messages, list) or not messages:
        raise InvalidTrajectory("must be a list of messages that is not empty", place=key)
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidTrajectory("a message must be an object", place=f"{key}.{index}")
        if message.get("role") not in ROLES:
            raise InvalidTrajectory(
                f"unknown role {message.get('role')!r}; allowed are {', '.join(ROLES)}", place=f"{key}.{index}.role"
            )
    return messages


def _steps(messages: Sequence[Mapping[str, Any]], place: str) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    tools: dict[str, str] = {}
    for index, message in enumerate(messages):
        role, here = message["role"], f"{place}.{index}"
        if role == "user":
            steps += _said(message, here)
        elif role == "assistant":
            steps += _said(message, here)
            calls = _calls(message, here)
            tools |= {call["call_id"]: call["tool"] for call in calls if isinstance(call["call_id"], str)}
            steps += calls
        elif role in ("tool", "function"):
            steps.append(_result(message, tools, here))
    if not steps:
        raise InvalidTrajectory("no message has any content besides the system's", place=place)
    return steps


def _said(message: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    actor = message.get("name") or message["role"]
    parts = (
        (StepKind.THOUGHT, _text(message.get("reasoning_content"), f"{place}.reasoning_content")),
        (StepKind.MESSAGE, _text(message.get("content"), f"{place}.content")),
        (StepKind.MESSAGE, _text(message.get("refusal"), f"{place}.refusal")),
    )
    return [{"kind": kind, "text": text, "actor": actor} for kind, text in parts if text.strip()]


def _calls(message: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    """Tool calls, or the older single ``function_call``; a custom tool's ``input`` is its text."""
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise InvalidTrajectory("must be a list of tool calls", place=f"{place}.tool_calls")
    if message.get("function_call"):
        calls = [{"function": message["function_call"]}, *calls]
    steps = []
    for index, call in enumerate(calls):
        function = call.get("function") or call.get("custom") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise InvalidTrajectory("a tool call needs a function with a name", place=f"{place}.tool_calls.{index}")
        content = _arguments(function.get("arguments", function.get("input")))
        steps.append(
            {
                "kind": StepKind.TOOL_CALL,
                "actor": message.get("name") or message["role"],
                "tool": function["name"],
                "call_id": call.get("id"),
                **content,
            }
        )
    return steps


def _arguments(given: Any) -> dict[str, Any]:
    """``arguments`` where they are a JSON object, given as such or as text; else ``text`` as it was given."""
    if given is None or given == "":
        return {"arguments": {}}
    if isinstance(given, Mapping):
        return {"arguments": given}
    if not isinstance(given, str):
        return {"text": json.dumps(given)}
    try:
        parsed = loads(given)
    except (ValueError, RecursionError):
        return {"text": given}
    return {"arguments": parsed} if isinstance(parsed, dict) else {"text": given}


def _result(message: Mapping[str, Any], tools: Mapping[str, str], place: str) -> dict[str, Any]:
    call_id = message.get("tool_call_id")
    text = _text(message.get("content"), f"{place}.content")
    failed = text.lstrip().startswith("Error:")
    return {
        "kind": StepKind.TOOL_RESULT,
        "actor": "tool",
        "tool": message.get("name") or (tools.get(call_id) if isinstance(call_id, str) else None),
        "call_id": call_id,
        "text": text,
        "error": (text.split("Error:", 1)[1].strip() or "Error") if failed else None,
    }


def _text(content: Any, place: str) -> str:
    """A message's content as text; of a list of parts, those that are no text leave their type, as ``[image_url]``."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidTrajectory("must be text or a list of parts", place=place)
    return "\n".join(_part(part, f"{place}.{index}") for index, part in enumerate(content))


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise InvalidTrajectory("a part must be an object with a 'type'", place=place)
    text = part.get("text", part.get("refusal"))
    return text if isinstance(text, str) else f"[{part['type']}]"


def _goal(messages: Sequence[Mapping[str, Any]]) -> str:
    return next((text for m in messages if m["role"] == "user" and (text := _text(m.get("content"), "goal"))), "")


def _system_text(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(_text(m.get("content"), "system") for m in messages if m["role"] in ("system", "developer"))


def _system_prompt(messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    text = _system_text(messages)
    if not text:
        return {}
    return {"system_prompt_sha256": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()}


def _told_time(messages: Sequence[Mapping[str, Any]]) -> datetime | None:
    """The time that tau-bench's policy tells the agent it is."""
    found = _CURRENT_TIME.search(_system_text(messages))
    try:
        return datetime.fromisoformat(found[1]).replace(tzinfo=_EST) if found else None
    except ValueError:
        return None
