"""Steps from whatever a framework hands over: any text, any arguments, any error becomes one that can be stored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import JsonValue

from rag_tuned_memory.trajectory import Step, StepKind

MOST_LEVELS = 50
"""Of lists and objects in each other; what is nested deeper is told as text. The store takes twice as many."""
_TOO_DEEP = "[…nested too deeply]"


def message(actor: str, text: str, *, ref: str, at: datetime | None = None) -> Step | None:
    """What was said; None where it is empty. ``at`` is now by default."""
    text = storable(text)
    return _step(StepKind.MESSAGE, at, actor=storable(actor), text=text, ref=storable(ref)) if text.strip() else None


def tool_call(
    tool: str,
    arguments: Any,
    *,
    call_id: str,
    actor: str = "assistant",
    ref: str | None = None,
    at: datetime | None = None,
) -> Step:
    """A tool that was called; arguments that are no mapping are kept under ``input``."""
    given = arguments if isinstance(arguments, Mapping) else {"input": arguments}
    return _step(
        StepKind.TOOL_CALL,
        at,
        actor=storable(actor),
        tool=storable(tool) or "unnamed",
        arguments={storable(str(key)): jsonable(value) for key, value in given.items()},
        call_id=storable(call_id),
        ref=storable(ref) if ref else None,
    )


def tool_result(
    tool: str | None,
    result: Any,
    *,
    call_id: str,
    ref: str | None = None,
    error: BaseException | str | None = None,
    at: datetime | None = None,
) -> Step:
    """What a tool gave back, as text (JSON where it is none), or the error that it ended with."""
    text = storable(result if isinstance(result, str) else json.dumps(jsonable(result), ensure_ascii=False))
    return _step(
        StepKind.TOOL_RESULT,
        at,
        tool=storable(tool or "") or "unnamed",
        text="" if result is None else text,
        error=described(error) if error is not None else None,
        call_id=storable(call_id),
        ref=storable(ref) if ref else None,
    )


def failure(error: BaseException, *, ref: str, at: datetime | None = None) -> Step:
    """An error that a run met, or that ended it."""
    return _step(
        StepKind.OBSERVATION, at, text=f"The run met an error: {described(error)}", error=described(error), ref=ref
    )


def described(error: BaseException | str) -> str:
    """An error in one text that is not empty."""
    if isinstance(error, str):
        return storable(error).strip() or "failed"
    return storable(f"{type(error).__name__}: {error}".rstrip(": "))


def storable(text: str) -> str:
    """``text`` as valid UTF-8: a lone surrogate becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def jsonable(value: Any, levels: int = MOST_LEVELS) -> JsonValue:
    """``value`` as JSON of at most so many levels; what JSON has no form for is told as text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return storable(value)
    if levels == 0:
        return _TOO_DEEP
    if isinstance(value, Mapping):
        return {storable(str(key)): jsonable(one, levels - 1) for key, one in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [jsonable(one, levels - 1) for one in value]
    if callable(dump := getattr(value, "model_dump", None)):
        return jsonable(dump(mode="json"), levels - 1)
    return storable(str(value))


def _step(kind: StepKind, at: datetime | None, **fields: Any) -> Step:
    return Step(kind=kind, started_at=at or datetime.now(UTC), **fields)
