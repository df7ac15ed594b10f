"""One score from several signals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rag_tuned_memory.store.base import Candidate


@dataclass(frozen=True, slots=True)
class Weights:
    """What each signal counts. Every signal lies in [0, 1]; the score is their weighted mean, in [0, 1] too.

    The values are round numbers from the middle of a plateau, the same for all data: see benchmarks/locomo_recall.
    """

    dense: float = 0.5
    words: float = 0.5
    neighbour: float = 0.5
    actor: float = 0.2
    episode: float = 0.3

    @property
    def total(self) -> float:
        """The greatest weighted sum."""
        return self.dense + self.words + self.neighbour + self.actor + self.episode


@dataclass(frozen=True, slots=True)
class Fusion:
    """How one query's raw scores become scores in [0, 1] that can be added.

    Cosines are stretched so that the least of the candidates has 0 and the best 1; BM25, whose least is "no word in
    common", is divided by the best. Normalised-score fusion is better here than fusion of ranks, which forgets how far
    apart the scores are ("An Analysis of Fusion Functions for Hybrid Retrieval", Bruch, Gai, Ingber 2023).
    """

    least_cosine: float
    best_cosine: float
    best_bm25: float
    weights: Weights

    @classmethod
    def of(cls, candidates: Sequence[Candidate], weights: Weights) -> Fusion:
        """The scale that ``candidates`` set."""
        cosines = [candidate.dense for candidate in candidates if candidate.dense is not None] or [0.0]
        best_bm25 = max((candidate.bm25 or 0.0 for candidate in candidates), default=0.0)
        return cls(min(cosines), max(cosines), best_bm25, weights)

    def own(self, dense: float | None, bm25: float | None) -> float:
        """The weighted mean of both normalised scores; a missing one counts 0."""
        words = min(max(bm25 or 0.0, 0.0) / self.best_bm25, 1.0) if self.best_bm25 > 0 else 0.0
        total = self.weights.dense + self.weights.words
        return (self.weights.dense * self._meaning(dense) + self.weights.words * words) / total

    def _meaning(self, cosine: float | None) -> float:
        if cosine is None:
            return 0.0
        if self.best_cosine == self.least_cosine:
            return 1.0 if cosine >= self.best_cosine else 0.0
        return min(max((cosine - self.least_cosine) / (self.best_cosine - self.least_cosine), 0.0), 1.0)
