"""What recall returns."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from rag_tuned_memory.store.base import Heading
from rag_tuned_memory.trajectory import Outcome, StepKind


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class Signals(_Model):
    """What a result's score is made of. ``dense`` (cosine) and ``bm25`` are raw, None where a search did not find it.

    The others lie in [0, 1]: ``fused`` is the passage's own score, ``neighbour`` the best one beside it, ``actor``
    whether the query names who speaks, ``episode`` the best one of its trajectory.
    """

    dense: float | None
    bm25: float | None
    fused: float
    neighbour: float
    actor: float
    episode: float


class Recalled(_Model):
    """A passage that was recalled, where it comes from, and why it was kept."""

    trajectory_id: str
    step: int
    chunk: int
    ref: str | None
    kind: StepKind | None
    actor: str | None
    tool: str | None
    time: datetime | None
    text: str
    score: float
    signals: Signals
    reason: str


class RecalledEpisode(_Model):
    """A trajectory and what was recalled of it, in reading order."""

    trajectory_id: str
    goal: str
    outcome: Outcome
    time: datetime | None
    source: str
    results: tuple[Recalled, ...]


class Recollection(_Model):
    """The answer to one recall.

    ``results`` are in rank order, at most ``k``. ``tokens`` is what the assembled prompt text takes, by the counter
    given or else by a cautious estimate; ``dropped`` are results that the budget had no room for.
    """

    namespace: str
    query: str
    k: int
    token_budget: int | None = None
    results: tuple[Recalled, ...] = ()
    headings: dict[str, Heading] = {}
    tokens: int = 0
    dropped: tuple[Recalled, ...] = ()

    def episodes(self) -> list[RecalledEpisode]:
        """The results grouped by trajectory, the best one's trajectory first, each in reading order."""
        grouped: dict[str, list[Recalled]] = {}
        for result in self.results:
            grouped.setdefault(result.trajectory_id, []).append(result)
        return [self._episode(self.headings[name], results) for name, results in grouped.items()]

    def _episode(self, heading: Heading, results: list[Recalled]) -> RecalledEpisode:
        return RecalledEpisode(
            trajectory_id=heading.trajectory_id,
            goal=heading.goal,
            outcome=heading.outcome,
            time=heading.time,
            source=heading.source,
            results=tuple(sorted(results, key=lambda result: (result.step, result.chunk))),
        )
