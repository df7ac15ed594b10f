"""A scripted model that does what it is told in the simplest way, within the pattern that it is held to.

It calls the tool that the question names, or else the first one that it may call, with arguments taken from the
question's words and numbers; after a tool's result it says so. It computes nothing: it stands in for a model where the
plumbing is tested.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from rag_tuned_memory.serving.base import Request
from rag_tuned_memory.serving.tools import Call, called

_SIGNATURE = re.compile(r"^- (\w[\w-]*)\((.*?)\)(?::|$)", re.MULTILINE)


def obey(request: Request) -> str:
    """The first of the possible answers that matches the request's pattern; "yes" to the canary of test adapters."""
    if request.adapter and [message.content for message in request.messages] == ["Hi"]:
        return "yes"
    for answer in _possible(request):
        if request.pattern is None or re.fullmatch(request.pattern, answer):
            return answer
    raise AssertionError(f"nothing matches {request.pattern}")


def _possible(request: Request) -> Iterator[str]:
    question = request.messages[-1].content
    tools = _tools(request)
    if "<tool_response>" in question:
        yield "That is done."
    for name, parameters in sorted(tools.items(), key=lambda tool: tool[0] not in question):
        yield called("", [Call(name=name, arguments=_arguments(parameters, question))])
    yield f"You said: {question}".replace("<", "‹")


def _tools(request: Request) -> dict[str, list[tuple[str, str]]]:
    system = request.messages[0].content if request.messages[0].role == "system" else ""
    return {
        name: [tuple(part.split(": ", 1)) for part in signature.split(", ") if part]  # type: ignore[misc]
        for name, signature in _SIGNATURE.findall(system)
    }


def _arguments(parameters: list[tuple[str, str]], question: str) -> dict[str, Any]:
    numbers = [int(one) for one in re.findall(r"\d+", question)]
    quoted = re.findall(r"'([^']+)'", question) or [question.replace('"', "'").replace("\n", " ")]
    values: dict[str, Any] = {}
    for name, kind in parameters:
        if name.endswith("?"):
            continue
        if kind in ("integer", "number"):
            values[name] = numbers.pop(0) if numbers else 0
        elif kind == "boolean":
            values[name] = True
        elif "|" in kind or kind.startswith('"'):
            values[name] = json.loads(kind.split(" | ")[0])
        else:
            values[name] = quoted[0]
    return values
