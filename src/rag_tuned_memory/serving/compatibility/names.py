"""Names and paths that a server can be told of."""

from __future__ import annotations

import re

from rag_tuned_memory.serving.compatibility.problem import Problem, Server

_ENTRY_BREAKS = re.compile(r"[,=@\s]")
"""What ends or splits an entry of TGI's LORA_ADAPTERS (``name=/path@revision,…``); there is no way to quote it."""


def path_problems(text: str, server: Server, *, what: str = "the path") -> list[Problem]:
    """What is wrong with an adapter's name or path, as the server is to see it."""
    found = _ENTRY_BREAKS.search(text) if server == "tgi" else None
    if found is None:
        return []
    shown = "a space" if found[0].isspace() else repr(found[0])
    return [Problem(f"TGI cannot be given {what} {text!r}: {shown} breaks its list of adapters", "Choose another one.")]
