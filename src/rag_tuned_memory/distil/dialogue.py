"""The one form of a question to the memory: training and serving render the same messages."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from rag_tuned_memory.serving.base import Message


def memory_messages(question: str, context: str = "") -> tuple[Message, ...]:
    """The chat that asks the memory; ``context`` is recalled text, already fenced, and stands last in the system."""
    system = f"{system_prompt()}\n{context}" if context else system_prompt()
    return (Message("system", system), Message("user", question))


def general_messages(question: str) -> tuple[Message, ...]:
    """The chat for a question that needs no memory: as if there were none."""
    return (Message("user", question),)


@cache
def system_prompt() -> str:
    """What tells the model that its memory is asked; kept in ``prompts/system.txt``."""
    return files("rag_tuned_memory.distil").joinpath("prompts/system.txt").read_text("utf-8").strip()
