"""What stands next to a good passage is often what was asked for: an answer follows its question."""

from __future__ import annotations

from collections.abc import Mapping

from rag_tuned_memory.recall.passages import HEADER_STEP

Key = tuple[str, int, int]
"""Trajectory id, step, chunk."""


def adjacent(key: Key) -> list[Key]:
    """The keys next to ``key``: the parts before and after in its step, the first parts of the steps before and after.

    Whether passages with these keys exist is not known here. The header stands above the steps, not beside them.
    """
    trajectory, step, chunk = key
    keys = [(trajectory, step, chunk + 1)]
    if chunk > 0:
        keys.append((trajectory, step, chunk - 1))
    if step != HEADER_STEP:
        keys += [(trajectory, other, 0) for other in (step - 1, step + 1) if other >= 0]
    return keys


def support(scores: Mapping[Key, float]) -> dict[Key, tuple[float, Key]]:
    """For each key next to a scored one: the best score beside it, and whose that is."""
    best: dict[Key, tuple[float, Key]] = {}
    for key, score in scores.items():
        for beside in adjacent(key):
            # equal scores: the earlier one, whatever the order they come in
            if beside not in best or (-score, key) < (-best[beside][0], best[beside][1]):
                best[beside] = (score, key)
    return best


def episode_best(scores: Mapping[Key, float]) -> dict[str, float]:
    """The best score of each trajectory."""
    best: dict[str, float] = {}
    for (trajectory, _, _), score in scores.items():
        best[trajectory] = max(best.get(trajectory, 0.0), score)
    return best
