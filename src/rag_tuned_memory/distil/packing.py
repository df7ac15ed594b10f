"""Examples as token arrays: several in one row, each blind to the others, so that nothing is padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tokenised:
    """One example: ``ids``, of which those from ``answer_start`` on are learnt."""

    ids: tuple[int, ...]
    answer_start: int

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Sequence[int], end: int) -> Tokenised:
        """The prompt as served, then the answer and the token that ends a turn."""
        return cls((*prompt, *answer, end), len(prompt))


def pack(examples: Sequence[Tokenised], batch_tokens: int) -> list[list[Tokenised]]:
    """Rows of at most ``batch_tokens`` tokens, in order; an example that is longer has a row of its own."""
    rows: list[list[Tokenised]] = []
    room = 0
    for example in examples:
        if len(example.ids) > room:
            rows.append([])
            room = batch_tokens
        rows[-1].append(example)
        room -= len(example.ids)
    return rows
