"""What is trained next: less of what the adapter knows by now.

Selective backpropagation (Jiang et al. 2019, arXiv 1910.00762), by facts: a fact that was answered well the last time
is mostly passed over, and the tokens go to those that are not known yet. Few are easy from the start, and the last
ones need several times the exposures of the first. To decline what is unknown is learnt afterwards: while nothing is
known yet, "I have no memory of it" is the easiest answer to everything.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rag_tuned_memory.distil.packing import Row, Tokenised

KNOWN = 0.2
"""Nats. A fact counts as known while no token of its answer cost more when it was last asked."""
REVIEWED = 0.25
"""Share of a known fact's examples that are trained nevertheless, so that it stays known."""
DECLINES_FROM = 0.65
"""Share of the facts that must be known before questions about unknown things are trained. On the demo's history, 0.4
made the adapter decline 11 of 100 facts that it had been taught; 0.65 made it 4."""


@dataclass(frozen=True, slots=True)
class Item:
    """An example that may be trained.

    ``fact``: the fact that it asks for without context, else None. ``declines``: it asks about something unknown. Items
    of one ``group`` stand one after another and share a row, whatever its length.
    """

    tokens: Tokenised
    fact: str | None = None
    declines: bool = False
    group: str | None = None


def asked_facts(items: Iterable[Item]) -> set[str]:
    """The facts that items ask for without context."""
    return {item.fact for item in items if item.fact is not None}


class Curriculum:
    """Packs items into rows, in their order, until the budget is spent or none is left.

    Rows hold at most ``batch_tokens`` positions; an item that is longer has a row of its own. ``budget`` is met to
    within a row. What comes next depends on the losses that ``learnt`` was told, and on nothing else.
    """

    def __init__(self, items: Sequence[Item], *, batch_tokens: int, budget: int, seed: int = 0) -> None:
        self.items, self.batch_tokens, self.budget, self.seed = items, batch_tokens, budget, seed
        self.position = 0
        """Of the item that is looked at next."""
        self.spent = 0
        self.example_tokens = 0
        self.passed_over = 0
        self._facts = len(asked_facts(items))
        self._worst: dict[str, float] = {}
        self._asked: list[str | None] = []

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        if not self.items:
            return 1.0
        return min(1.0, max(self.spent / self.budget, self.position / len(self.items)))

    def next_row(self) -> Row | None:
        """The next row, None at the end."""
        row, group = Row(), None
        self._asked = []
        while self.progress < 1:
            item = self.items[self.position]
            if self._passes_over(item):
                self.passed_over += 1
            elif row.ids and not self._belongs(item, group) and self._overfull(row, item):
                break
            else:
                row.add(item.tokens)
                group = item.group
                self._asked.append(item.fact)
                self.example_tokens += len(item.tokens.ids)
            self.position += 1
        self.spent += len(row.ids)
        return row if row.ids else None

    @staticmethod
    def _belongs(item: Item, group: str | None) -> bool:
        return group is not None and item.group == group

    def _overfull(self, row: Row, item: Item) -> bool:
        return len(row.ids) + row.new_positions(item.tokens) > self.batch_tokens

    def learnt(self, row: Row, losses: Sequence[float]) -> None:
        """Take in the loss of each of ``row.targets``; ``row`` is the one that ``next_row`` gave last."""
        start = 0
        for fact, end in zip(self._asked, row.ends, strict=True):
            if fact is not None:
                self._worst[fact] = max(losses[start:end], default=0.0)
            start = end

    @property
    def known(self) -> int:
        """How many facts count as known."""
        return sum(worst < KNOWN for worst in self._worst.values())

    def state(self) -> dict[str, Any]:
        """All that ``resume`` needs, between two rows."""
        return {
            "position": self.position,
            "spent": self.spent,
            "example_tokens": self.example_tokens,
            "passed_over": self.passed_over,
            "worst": dict(self._worst),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self.position, self.spent = state["position"], state["spent"]
        self.example_tokens, self.passed_over = state["example_tokens"], state["passed_over"]
        self._worst = dict(state["worst"])

    def _passes_over(self, item: Item) -> bool:
        if item.declines:
            return self.known < DECLINES_FROM * self._facts
        if item.fact is None or self._worst.get(item.fact, KNOWN) >= KNOWN:
            return False
        return random.Random(f"{self.seed} {self.position}").random() >= REVIEWED
