"""The training set as a file: JSON lines in the SFT (messages) form, in the order in which they are trained."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from rag_tuned_memory.serving.base import Message

ExampleKind = Literal["local", "global", "unknown", "summary", "reading", "general", "acting"]
ContextKind = Literal["none", "matched", "mismatched"]


class ChatMessage(BaseModel):
    """One message of the SFT form."""

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str


class Example(BaseModel):
    """One training example: the last message is the assistant's, and only it is learnt.

    Examples of one ``group`` follow each other and begin alike, each with the one before: they are computed together.
    """

    model_config = ConfigDict(frozen=True)

    messages: tuple[ChatMessage, ...]
    kind: ExampleKind
    context: ContextKind = "none"
    fact_id: str | None = None
    group: str | None = None

    @classmethod
    def make(
        cls,
        prompt: Sequence[Message],
        answer: str,
        kind: ExampleKind,
        context: ContextKind = "none",
        fact_id: str | None = None,
        group: str | None = None,
    ) -> Example:
        """From serving's messages and the answer."""
        chat = [ChatMessage(role=message.role, content=message.content) for message in prompt]
        chat.append(ChatMessage(role="assistant", content=answer))
        return cls(messages=tuple(chat), kind=kind, context=context, fact_id=fact_id, group=group)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages but the answer."""
        return tuple(Message(message.role, message.content) for message in self.messages[:-1])

    @property
    def answer(self) -> str:
        """What is learnt."""
        return self.messages[-1].content


def write_dataset(path: Path, examples: Sequence[Example]) -> str:
    """Write JSON lines; returns the file's SHA-256."""
    data = "".join(example.model_dump_json(exclude_none=True) + "\n" for example in examples).encode()
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_dataset(path: Path) -> list[Example]:
    """Read what ``write_dataset`` wrote."""
    return [Example.model_validate_json(line) for line in path.read_bytes().splitlines()]


def composition(examples: Sequence[Example]) -> dict[str, int]:
    """How many examples of each kind and context: ``{"local, matched context": 50, …}``."""
    names = (
        example.kind if example.context == "none" else f"{example.kind}, {example.context} context"
        for example in examples
    )
    return dict(sorted(Counter(names).items()))
