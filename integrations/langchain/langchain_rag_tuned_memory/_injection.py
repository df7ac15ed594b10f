"""Recalled text in a model call's system message."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import SystemMessage


def with_block(system: SystemMessage | None, text: str) -> SystemMessage:
    """``system`` with ``text`` as a content block of its own at the end.

    What was there stays as it was, so that structured blocks keep their settings and a prompt cache its prefix.
    """
    if system is None:
        return SystemMessage(content=[_block(text)])
    before = [_block(system.content)] if isinstance(system.content, str) else system.content
    return system.model_copy(update={"content": [*(one for one in before if one != _block("")), _block(text)]})


def _block(text: str) -> str | dict[Any, Any]:
    return {"type": "text", "text": text}
