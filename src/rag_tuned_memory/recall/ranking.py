"""From candidates to ranked results: own score, neighbours, who speaks, the rest of the episode."""

from __future__ import annotations

from collections.abc import Sequence

from rag_tuned_memory.recall.fusion import Fusion, Weights
from rag_tuned_memory.recall.neighbours import Key, adjacent, episode_best, support
from rag_tuned_memory.recall.passages import HEADER_STEP
from rag_tuned_memory.recall.recollection import Recalled, Signals
from rag_tuned_memory.recall.words import names
from rag_tuned_memory.store.base import Candidate, Passage

_NOTHING: tuple[float, None] = (0.0, None)


class Ranking:
    """The scores of one query's candidates, and what follows from them for passages beside these.

    ``fusion`` is the scale of the scores, by default that of ``candidates``.
    """

    def __init__(
        self, query: str, candidates: Sequence[Candidate], weights: Weights, *, fusion: Fusion | None = None
    ) -> None:
        self.weights = weights
        self.fusion = fusion or Fusion.of(candidates, weights)
        self.asked = names(query)
        self.found: dict[Key, Candidate] = {one.passage.key: one for one in candidates}
        self.own = {key: self.fusion.own(one.dense, one.bm25) for key, one in self.found.items()}
        self.beside = support(self.own)
        self.episodes = episode_best(self.own)

    def missing(self, most: int) -> list[Key]:
        """Keys beside the best ``most`` candidates, themselves no candidates; passages with them may not exist."""
        best = sorted(self.found.values(), key=self._rank)[:most]
        beside = (key for one in best for key in adjacent(one.passage.key))
        return [key for key in dict.fromkeys(beside) if key not in self.found]

    def results(self, k: int) -> list[Recalled]:
        """The first ``k``, best first; equal ones by their key."""
        best = sorted(self.found.values(), key=self._rank)[:k]
        return [self._recalled(one) for one in best]

    def _rank(self, candidate: Candidate) -> tuple[float, Key]:
        return (-self._score(candidate.passage), candidate.passage.key)

    def _score(self, passage: Passage) -> float:
        weights, key = self.weights, passage.key
        total = self.own[key] * (weights.dense + weights.words)
        total += weights.neighbour * self.beside.get(key, _NOTHING)[0]
        total += weights.actor * self._names_actor(passage) + weights.episode * self.episodes[key[0]]
        return total / weights.total

    def _names_actor(self, passage: Passage) -> float:
        return 1.0 if passage.actor and not self.asked.isdisjoint(names(passage.actor)) else 0.0

    def _recalled(self, candidate: Candidate) -> Recalled:
        passage = candidate.passage
        signals = Signals(
            dense=candidate.dense,
            bm25=candidate.bm25,
            fused=self.own[passage.key],
            neighbour=self.beside.get(passage.key, _NOTHING)[0],
            actor=self._names_actor(passage),
            episode=self.episodes[passage.trajectory_id],
        )
        return Recalled(
            trajectory_id=passage.trajectory_id,
            step=passage.step,
            chunk=passage.chunk,
            ref=passage.ref,
            kind=passage.kind,
            actor=passage.actor,
            tool=passage.tool,
            time=passage.time,
            text=passage.text,
            score=self._score(passage),
            signals=signals,
            reason=self._reason(passage, signals),
        )

    def _reason(self, passage: Passage, signals: Signals) -> str:
        """A sentence: what matched, and what stands beside it."""
        parts = []
        if signals.fused > 0:
            matched = "words and meaning" if signals.bm25 is not None else "meaning"
            parts.append(f"matched by {matched}")
        if signals.neighbour > signals.fused:
            _, step, chunk = self.beside[passage.key][1]
            where = "the header" if step == HEADER_STEP else f"step {step}"
            parts.append(f"next to part {chunk} of {where}" if step == passage.step else f"next to {where}")
        if signals.actor and passage.actor:
            parts.append(f"the query names {passage.actor}")
        return "; ".join(parts) or "from the same episode"
