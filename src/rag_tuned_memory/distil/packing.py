"""Examples as token arrays: several in one row, each blind to the others, common beginnings computed once.

The examples of a row are merged into a trie of their tokens. Every token attends to its own path to the root, so each
example sees what it would see alone (tree attention, as in SpecInfer, arXiv 2305.09781, here for training), nothing is
padding, and a system prompt that all of them begin with is one path. Gradients are those of separate examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tokenised:
    """One example: ``ids``, of which those from ``answer_start`` on are learnt."""

    ids: tuple[int, ...]
    answer_start: int

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Sequence[int], end: int) -> Tokenised:
        """The prompt as served, then the answer and the token that ends a turn."""
        return cls((*prompt, *answer, end), len(prompt))


@dataclass(slots=True)
class Row:
    """Merged examples. Position ``i`` holds token ``ids[i]``, whose path goes on at ``parents[i]`` (-1: the root).

    ``depths`` are the position ids. ``predictors[j]`` is the position that has to predict ``targets[j]``; the targets
    of the ``k``-th example end before ``ends[k]``.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    predictors: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def new_positions(self, example: Tokenised) -> int:
        """How many positions ``example`` would add."""
        node = -1
        for depth, token in enumerate(example.ids):
            child = self._children.get((node, token))
            if child is None:
                return len(example.ids) - depth
            node = child
        return 0

    def add(self, example: Tokenised) -> None:
        """Merge an example in."""
        node = -1
        for depth, token in enumerate(example.ids):
            if depth >= example.answer_start:
                self.predictors.append(node)
                self.targets.append(token)
            child = self._children.get((node, token))
            if child is None:
                child = self._children[node, token] = len(self.ids)
                self.ids.append(token)
                self.parents.append(node)
                self.depths.append(depth)
            node = child
        self.ends.append(len(self.targets))

    def visible(self) -> NDArray[np.bool_]:
        """Which positions (columns) each position (row) attends to: its path to the root, itself included."""
        seen = np.zeros((len(self.ids), len(self.ids)), dtype=np.bool_)
        for position, parent in enumerate(self.parents):
            if parent >= 0:
                seen[position] = seen[parent]
            seen[position, position] = True
        return seen
