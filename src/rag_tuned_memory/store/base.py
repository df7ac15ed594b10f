"""What keeps episodes: the protocol every store implements, and its value types.

Raw trajectories are the truth; passages and vectors are projections of them that can be dropped and rebuilt.
A namespace is part of every key and of every query.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from rag_tuned_memory.embedding.base import EmbedderIdentity, Vectors
from rag_tuned_memory.trajectory import Outcome, StepKind, Time, Trajectory


@dataclass(frozen=True, slots=True)
class Passage:
    """The unit that is searched: one step of a trajectory, or a part of a long step.

    ``step`` is the step's index, or -1 for the trajectory's header (goal and outcome). ``chunk`` counts the parts of
    a long step. ``text`` is what a reader sees; ``indexed`` is what is embedded and searched (speaker or tool and date
    in front). The rest is copied from the trajectory so that filters need no second look-up.
    """

    trajectory_id: str
    step: int
    chunk: int
    kind: StepKind | None
    text: str
    indexed: str
    actor: str | None = None
    tool: str | None = None
    ref: str | None = None
    time: datetime | None = None

    @property
    def key(self) -> tuple[str, int, int]:
        """Unique within a namespace; sorts in reading order within a trajectory."""
        return (self.trajectory_id, self.step, self.chunk)


class Filter(BaseModel):
    """Which passages may be found. All given conditions must hold; an unset one does not restrict.

    ``since`` and ``until`` compare the passage's time (its step's, else its trajectory's): ``since <= time < until``;
    an undated passage fails a time condition. ``tool`` keeps steps of that tool; ``success`` keeps trajectories whose
    outcome says so; ``source`` and ``trajectory_ids`` keep those trajectories, ``without`` leaves those out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    since: Time | None = None
    until: Time | None = None
    tool: str | None = None
    success: bool | None = None
    source: str | None = None
    trajectory_ids: frozenset[str] | None = None
    without: frozenset[str] | None = None

    def __bool__(self) -> bool:
        return bool(self.model_dump(exclude_none=True, exclude={"without"}) or self.without)


NO_FILTER = Filter()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage that one or both searches found, with each signal's own score (None: not found by that one).

    ``dense`` is the cosine similarity in [-1, 1]; ``bm25`` is positive, higher is better.
    """

    passage: Passage
    dense: float | None
    bm25: float | None


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a namespace holds. Times are of trajectories; ``recorded_at`` is when this store took the newest one."""

    trajectories: int
    passages: int
    successes: int
    failures: int
    first_time: datetime | None
    last_time: datetime | None
    recorded_at: datetime | None
    bytes: int | None = None
    sources: dict[str, int] = field(default_factory=dict)
    tools: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredTrajectory:
    """A trajectory with what the store knows of it: ``sequence`` grows with each write of the namespace."""

    trajectory: Trajectory
    sequence: int
    recorded_at: datetime
    content_hash: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A trajectory to be written with its passages: the arguments of ``EpisodeStore.put``."""

    trajectory: Trajectory
    passages: Sequence[Passage]
    vectors: Vectors
    after: int = 0


@dataclass(frozen=True, slots=True)
class Projection:
    """What is derived from a trajectory's content for searching; ``vectors[i]`` belongs to ``passages[i]``."""

    trajectory_id: str
    content_hash: str
    passages: Sequence[Passage]
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class Heading:
    """What is said of a trajectory above its passages, without reading all of it."""

    trajectory_id: str
    goal: str
    outcome: Outcome
    time: datetime | None
    source: str
    content_hash: str


class EpisodeStore(Protocol):
    """Keeps trajectories and finds passages.

    Every write is one transaction: when the call returns, it is durable and can be found; when it raises, nothing of
    it is there. All methods may be called from several tasks at once, and several processes may share one store.
    """

    async def put(
        self,
        trajectory: Trajectory,
        passages: Sequence[Passage],
        vectors: Vectors,
        embedder: EmbedderIdentity,
        *,
        after: int = 0,
    ) -> bool:
        """Write a trajectory and its passages; ``vectors[i]`` belongs to ``passages[i]``.

        Returns whether anything changed: False when the same content is already there. Other content under the same
        id replaces the trajectory and all its passages. Its sequence is greater than ``after``, so that what is moved
        from another store keeps its place.

        Raises:
            InvalidVector: NaN, infinity or another shape.
            EmbedderMismatch: the namespace holds vectors of another embedder.
            StoreFull, StoreBusy, StoreCorrupt: see ``errors``.
        """
        ...

    async def put_many(self, entries: Sequence[Entry], embedder: EmbedderIdentity) -> list[bool]:
        """As ``put`` for each entry, at far less cost for each; a few hundred passages at once are right.

        All are checked before any is written. Each is written wholly or not at all; when this raises, some may be
        there.

        Raises:
            InvalidInput, InvalidVector, EmbedderMismatch, StoreError: as ``put``.
        """
        ...

    async def get(self, namespace: str, trajectory_id: str) -> StoredTrajectory:
        """Raises TrajectoryNotFound."""
        ...

    def scan(self, namespace: str, *, after: int = 0, where: Filter = NO_FILTER) -> AsyncIterator[StoredTrajectory]:
        """All trajectories with ``sequence > after``, in order of sequence, streamed in pages."""
        ...

    async def candidates(
        self, namespace: str, text: str, vector: Vectors, *, limit: int, where: Filter = NO_FILTER
    ) -> list[Candidate]:
        """Up to ``limit`` passages of each signal: nearest to ``vector`` (shape ``(dimension,)``) and best by BM25.

        Both scores are filled in for every candidate where the store can do so cheaply; ``dense`` always is.
        """
        ...

    async def passages(self, namespace: str, trajectory_id: str) -> list[Passage]:
        """All passages of one trajectory in reading order; empty when there is none."""
        ...

    async def projection(self, namespace: str, trajectory_id: str) -> Projection:
        """All passages of one trajectory in reading order, with their vectors. Raises TrajectoryNotFound."""
        ...

    async def candidates_at(
        self, namespace: str, keys: Sequence[tuple[str, int, int]], vector: Vectors
    ) -> list[Candidate]:
        """The passages with these keys (trajectory id, step, chunk) and their cosine to ``vector``, ordered by key.

        Keys of nothing are left out; ``bm25`` is None.
        """
        ...

    async def headings(self, namespace: str, trajectory_ids: Sequence[str]) -> dict[str, Heading]:
        """Headings by trajectory id; ids that are not there are left out."""
        ...

    async def embedder(self, namespace: str) -> EmbedderIdentity | None:
        """Whose vectors the namespace holds; None while it holds none."""
        ...

    async def mentions(self, namespace: str, phrase: str) -> int:
        """In how many trajectories the exact phrase occurs (case-insensitive, whole words)."""
        ...

    async def delete(self, namespace: str, trajectory_ids: Sequence[str]) -> list[str]:
        """Remove trajectories with everything derived from them; returns the ids that were there."""
        ...

    async def drop_namespace(self, namespace: str) -> None:
        """Remove all that a namespace holds, small values too. Nobody may write to it meanwhile: that is lost."""
        ...

    async def rebuild(self, namespace: str, projections: Sequence[Projection], embedder: EmbedderIdentity) -> list[str]:
        """Replace everything derived from the trajectories of a namespace, in one transaction, by ``projections``.

        Returns the ids of trajectories whose present content no projection is of; where there are any, nothing has
        changed. Projections of what is not there are left out. Afterwards the vectors are ``embedder``'s.

        Raises:
            InvalidVector: NaN, infinity or another shape; nothing has changed.
        """
        ...

    async def namespaces(self) -> list[str]: ...

    async def stats(self, namespace: str) -> StoreStats: ...

    async def get_meta(self, namespace: str, key: str) -> str | None:
        """A small value that another part keeps beside the episodes (a watermark, a date); None when there is none."""
        ...

    async def set_meta(self, namespace: str, key: str, value: str | None) -> None:
        """Keep it; None removes it."""
        ...

    async def check(self) -> list[str]:
        """Problems found, each a sentence with its remedy; empty when all is well."""
        ...

    async def mend(self) -> list[str]:
        """Remove what writes that were killed have left behind; says what was done, a sentence each."""
        ...

    async def close(self) -> None: ...
