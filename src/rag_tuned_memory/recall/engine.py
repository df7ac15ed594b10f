"""Recording for recall, and recall itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from rag_tuned_memory.embedding.base import Embedder, EmbedderIdentity, Vectors, checked
from rag_tuned_memory.errors import EmbedderMismatch, InvalidInput, RagTunedMemoryError, TrajectoryNotFound
from rag_tuned_memory.recall.budget import CountTokens, within
from rag_tuned_memory.recall.fusion import Weights
from rag_tuned_memory.recall.neighbours import Key
from rag_tuned_memory.recall.passages import build_passages
from rag_tuned_memory.recall.ranking import Ranking
from rag_tuned_memory.recall.recollection import Recollection
from rag_tuned_memory.recall.words import telling
from rag_tuned_memory.store.base import NO_FILTER, Candidate, Entry, EpisodeStore, Filter, Passage
from rag_tuned_memory.trajectory import Trajectory, validate_namespace

LEAST_CANDIDATES = 100
"""So many passages are asked of each search at least, four times ``k`` where that is more."""
_EXPANDED = 3
"""The passages beside the best ``3 * k`` candidates are looked at too; with more, nothing was gained."""
_BATCH_PASSAGES = 256
_BATCH_TRAJECTORIES = 64


@dataclass(frozen=True, slots=True)
class Indexed:
    """What became of one trajectory of ``index_many``: whether the store changed, or the error that kept it out."""

    trajectory_id: str
    changed: bool
    passages: int
    error: RagTunedMemoryError | None = None


class Recall:
    """Records trajectories in ``store`` with vectors of ``embedder``, and finds their passages again.

    A recall asks the store for the nearest vectors and for the best texts, fuses both scores, lets neighbouring steps,
    the speaker that the query names and the rest of the episode count, and keeps the best ``k`` within the budget.
    """

    def __init__(self, store: EpisodeStore, embedder: Embedder, *, weights: Weights | None = None) -> None:
        self.store = store
        self.embedder = embedder
        self.weights = weights or Weights()

    async def index(self, trajectory: Trajectory) -> bool:
        """Record one trajectory; it can be recalled when this returns. False when it was there already, unchanged.

        Raises:
            InvalidVector: the embedder gave NaN, infinity or another shape; nothing is stored.
            StoreError, EmbedderMismatch: see ``EpisodeStore.put``.
        """
        if await self._there([trajectory]):
            return False
        passages = await anyio.to_thread.run_sync(build_passages, trajectory)
        vectors = await self._vectors(trajectory, passages)
        return await self.store.put(trajectory, passages, vectors, await self._identity())

    async def index_many(
        self, trajectories: Iterable[Trajectory], *, progress: Callable[[Indexed], None] | None = None
    ) -> list[Indexed]:
        """Record trajectories, embedding the passages of several together; ``progress`` is called after each.

        A trajectory that cannot be taken (InvalidInput) is reported in its place and the others go on; where the store
        itself fails, that is raised, and what was reported before stays recorded.
        """
        done: list[Indexed] = []
        batch: list[tuple[Trajectory, list[Passage]]] = []

        def report(one: Indexed) -> None:
            done.append(one)
            if progress is not None:
                progress(one)

        source = iter(trajectories)
        while some := list(islice(source, _BATCH_TRAJECTORIES)):
            there = await self._there(some)
            for trajectory in some:
                if trajectory in there:
                    await self._flush(batch, report)
                    report(Indexed(trajectory.id, changed=False, passages=0))
                    continue
                batch.append((trajectory, await anyio.to_thread.run_sync(build_passages, trajectory)))
                if sum(len(passages) for _, passages in batch) >= _BATCH_PASSAGES:
                    await self._flush(batch, report)
        await self._flush(batch, report)
        return done

    async def recall(
        self,
        namespace: str,
        query: str,
        *,
        k: int = 10,
        token_budget: int | None = None,
        where: Filter = NO_FILTER,
        count_tokens: CountTokens | None = None,
    ) -> Recollection:
        """The passages of ``namespace`` that tell most about ``query``.

        At most ``k`` passages, neighbours included, and at most ``token_budget`` tokens in the assembled prompt text,
        headings and fence included. Tokens are counted by ``count_tokens`` (called in a worker thread), or estimated
        cautiously. An empty memory gives an empty recollection.

        Raises:
            InvalidInput: an empty query or one that is not valid UTF-8, ``k`` below 1, a negative budget.
            EmbedderMismatch: the namespace holds vectors of another embedder.
        """
        validate_namespace(namespace)
        _check(query, k, token_budget)
        stored = await self.store.embedder(namespace)
        if stored is None:
            return Recollection(namespace=namespace, query=query, k=k, token_budget=token_budget)
        identity = await self._identity()
        if stored != identity:
            raise EmbedderMismatch(
                f"it holds vectors of {_named(stored)}, and the query's would be of {_named(identity)}",
                place=f"namespace {namespace!r}",
                remedy="Use the embedder that recorded it, or rebuild the vectors: `rtm reindex`.",
            )
        vectors = checked(await self.embedder.embed([query], kind="query"), rows=1, dimension=identity.dimension)
        limit = max(LEAST_CANDIDATES, 4 * k)
        candidates = await self.store.candidates(namespace, telling(query), vectors[0], limit=limit, where=where)
        ranking = Ranking(query, candidates, self.weights)
        keys = ranking.missing(_EXPANDED * k)
        beside = [one for one in await self._at(namespace, keys, vectors[0]) if _passes(one.passage, where)]
        results = Ranking(query, [*candidates, *beside], self.weights, fusion=ranking.fusion).results(k)
        found = await self.store.headings(namespace, list({result.trajectory_id for result in results}))
        # what another process forgot meanwhile is not shown
        kept = tuple(result for result in results if result.trajectory_id in found)
        whole = Recollection(namespace=namespace, query=query, k=k, results=kept, headings=found)
        return await anyio.to_thread.run_sync(within, whole, token_budget, count_tokens)

    async def _at(self, namespace: str, keys: Sequence[Key], vector: Vectors) -> list[Candidate]:
        return await self.store.candidates_at(namespace, keys, vector) if keys else []

    async def _there(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """Which are recorded exactly so, with vectors of this embedder, so that nothing need be embedded."""
        hashes = await anyio.to_thread.run_sync(lambda: [one.content_hash for one in trajectories])
        by_namespace: dict[str, list[tuple[Trajectory, str]]] = {}
        for one, content_hash in zip(trajectories, hashes, strict=True):
            by_namespace.setdefault(one.namespace, []).append((one, content_hash))
        there: list[Trajectory] = []
        for namespace, some in by_namespace.items():
            found = await self.store.headings(namespace, [one.id for one, _ in some])
            same = [one for one, content_hash in some if one.id in found and found[one.id].content_hash == content_hash]
            if same and await self.store.embedder(namespace) == await self._identity():
                there += same
        return there

    async def _identity(self) -> EmbedderIdentity:
        """The embedder's identity; an embedder may have to read its weights for it."""
        return await anyio.to_thread.run_sync(lambda: self.embedder.identity)

    async def _flush(self, batch: list[tuple[Trajectory, list[Passage]]], report: Callable[[Indexed], None]) -> None:
        """Embed and write ``batch``, and empty it."""
        try:
            vectors = await self._embed([passage for _, passages in batch for passage in passages])
            ends = np.cumsum([len(passages) for _, passages in batch])
            parts = np.split(vectors, ends[:-1]) if batch else []
            entries = [
                Entry(trajectory, passages, part) for (trajectory, passages), part in zip(batch, parts, strict=True)
            ]
            changed = await self.store.put_many(entries, await self._identity())
        except InvalidInput:  # one at a time, to find which it is
            for trajectory, passages in batch:
                report(await self._indexed(trajectory, passages))
        else:
            for entry, one in zip(entries, changed, strict=True):
                report(Indexed(entry.trajectory.id, changed=one, passages=len(entry.passages)))
        batch.clear()

    async def _indexed(self, trajectory: Trajectory, passages: Sequence[Passage]) -> Indexed:
        try:
            vectors = await self._embed(passages)
            changed = await self.store.put(trajectory, passages, vectors, await self._identity())
        except InvalidInput as error:
            return Indexed(trajectory.id, changed=False, passages=0, error=error)
        return Indexed(trajectory.id, changed=changed, passages=len(passages))

    async def _vectors(self, trajectory: Trajectory, passages: Sequence[Passage]) -> Vectors:
        """The vectors of ``passages``: those that the stored trajectory has of the same text, and new ones.

        An episode that grows by a step costs the embedding of one passage, not of all of them again.
        """
        known = await self._known(trajectory)
        new = [passage for passage in passages if passage.indexed not in known]
        fresh = await self._embed(new)
        if not known:
            return fresh
        known |= {passage.indexed: vector for passage, vector in zip(new, fresh, strict=True)}
        return np.stack([known[passage.indexed] for passage in passages]) if passages else fresh

    async def _known(self, trajectory: Trajectory) -> dict[str, NDArray[np.float32]]:
        """The stored vectors of a trajectory by the text that they are of; none of another embedder."""
        namespace = trajectory.namespace
        if not await self.store.headings(namespace, [trajectory.id]):
            return {}
        if await self.store.embedder(namespace) != await self._identity():
            return {}
        try:
            stored = await self.store.projection(namespace, trajectory.id)
        except TrajectoryNotFound:  # forgotten meanwhile
            return {}
        return {one.indexed: vector for one, vector in zip(stored.passages, stored.vectors, strict=True)}

    async def _embed(self, passages: Sequence[Passage]) -> Vectors:
        dimension = (await self._identity()).dimension
        if not passages:
            return np.zeros((0, dimension), dtype=np.float32)
        vectors = await self.embedder.embed([passage.indexed for passage in passages])
        return checked(vectors, rows=len(passages), dimension=dimension)


def _named(identity: EmbedderIdentity) -> str:
    return f"{identity.model} (revision {identity.revision[:12]}, dimension {identity.dimension})"


def _check(query: str, k: int, token_budget: int | None) -> None:
    if not isinstance(query, str) or not query.strip():
        raise InvalidInput("a query must be non-empty text", place="query", remedy="Say what to recall.")
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"not valid UTF-8 at character {error.start}", place="query") from None
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InvalidInput(f"must be a whole number of at least 1, is {k!r}", place="k")
    if token_budget is not None and (
        isinstance(token_budget, bool) or not isinstance(token_budget, int) or token_budget < 0
    ):
        raise InvalidInput(f"must be a whole number of at least 0, is {token_budget!r}", place="token_budget")


def _passes(passage: Passage, where: Filter) -> bool:
    """Whether a passage itself meets the conditions on tool and time; the others are its trajectory's."""
    if where.tool is not None and passage.tool != where.tool:
        return False
    if where.since is None and where.until is None:
        return True
    if passage.time is None:
        return False
    return (where.since is None or where.since <= passage.time) and (where.until is None or passage.time < where.until)
