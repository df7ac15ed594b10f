"""Options that many commands share, and how a command opens its memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from rag_tuned_memory.errors import InvalidInput, InvalidRecord
from rag_tuned_memory.memory import Memory
from rag_tuned_memory.store.base import Filter
from rag_tuned_memory.trajectory import describe

Namespace = Annotated[
    str,
    typer.Option("--namespace", "-n", envvar="RTM_NAMESPACE", show_envvar=True, help="Whose memory it is; required."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
K = Annotated[int, typer.Option("-k", help="At most so many passages.")]
Since = Annotated[str | None, typer.Option(help="Only from this time on (ISO 8601).")]
Until = Annotated[str | None, typer.Option(help="Only before this time (ISO 8601).")]
Tool = Annotated[str | None, typer.Option(help="Only steps of this tool.")]
Success = Annotated[bool | None, typer.Option("--success/--failure", help="Only episodes that ended so.")]
Source = Annotated[str | None, typer.Option(help="Only episodes from this source.")]


def open_memory(namespace: str) -> Memory:
    """The memory that the environment's settings describe."""
    return Memory(namespace)


def filter_of(
    since: str | None, until: str | None, tool: str | None, success: bool | None, source: str | None
) -> Filter | None:
    """A filter from a command's options; None where none was given. Raises InvalidInput."""
    given = {"since": since, "until": until, "tool": tool, "success": success, "source": source}
    fields = {name: value for name, value in given.items() if value is not None}
    try:
        return Filter.model_validate(fields) if fields else None
    except ValidationError as error:
        raise InvalidInput(describe(error), place="--" + str(error.errors()[0]["loc"][0])) from error


def read_json(text: str, place: str) -> Any:
    """A JSON document. Raises InvalidRecord with the line of what is wrong."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRecord(
            f"not valid JSON: {error.msg} (column {error.colno})", path=place, line=error.lineno
        ) from error
    except RecursionError as error:
        raise InvalidRecord("JSON that is nested too deeply", path=place) from error


def read_text(path: Path) -> str:
    """A file's text. Raises InvalidInput."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"not valid UTF-8 at byte {error.start}", place=str(path)) from error
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror or error}", place=str(path)) from error
