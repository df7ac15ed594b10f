"""What commands print: tables and text for people, JSON for programs."""

from __future__ import annotations

import json
import sys
import unicodedata
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

if TYPE_CHECKING:
    from rich.console import Console

_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of writing, and so can make a line look like another."""


def console(*, stderr: bool = False) -> Console:
    """A console that takes no text for markup: what is shown comes out of a memory."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    plain = to_jsonable_python(value, fallback=str)
    sys.stdout.write(json.dumps(plain, ensure_ascii=False, indent=None if not sys.stdout.isatty() else 2) + "\n")


def printable(text: str) -> str:
    """``text`` without control characters, which could change a terminal's state or hide what stands there."""
    return "".join(c if c in "\n\t" or not (unicodedata.category(c) == "Cc" or c in _BIDI) else "·" for c in text)


def one_line(text: str, most: int | None = None) -> str:
    """``text`` on one line, cut to ``most`` characters."""
    line = " ".join(printable(text).split())
    return line if most is None or len(line) <= most else line[: most - 1].rstrip() + "…"


def when(time: datetime | None) -> str:
    """A time for people."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M") if time else "–"
