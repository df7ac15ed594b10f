"""Recalled text in a model call's system message."""

from __future__ import annotations

from langchain_core.messages import SystemMessage


def with_block(system: SystemMessage | None, text: str) -> SystemMessage:
    """``system`` with ``text`` as a content block of its own at the end.

    What was there stays as it was, so that structured blocks keep their settings and a prompt cache its prefix.
    """
    block = {"type": "text", "text": text}
    if system is None:
        return SystemMessage(content=[block])
    if isinstance(system.content, str):
        before = [{"type": "text", "text": system.content}] if system.content else []
    else:
        before = list(system.content)
    return system.model_copy(update={"content": [*before, block]})
