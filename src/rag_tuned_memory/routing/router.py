"""Gathers a query's features and lets the rules decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from rag_tuned_memory.adapters.live import LiveAdapters
from rag_tuned_memory.adapters.manifest import Manifest
from rag_tuned_memory.embedding.base import Vectors
from rag_tuned_memory.recall.engine import Recall
from rag_tuned_memory.recall.recollection import Recollection
from rag_tuned_memory.routing import query as read
from rag_tuned_memory.routing.base import Decision, Features
from rag_tuned_memory.routing.learned import LearnedQuestions, Nearest
from rag_tuned_memory.routing.rules import SAME_QUESTION, Acting, Trust, decide, decide_task
from rag_tuned_memory.store.base import Filter


@dataclass(frozen=True, slots=True)
class Entities:
    """What a query names, and which of it the store knows."""

    named: tuple[str, ...]
    known: tuple[str, ...]


class Router:
    """Decides who answers a query."""

    def __init__(self, recall: Recall, live: LiveAdapters) -> None:
        self._recall = recall
        self._live = live
        self._learned = LearnedQuestions(live.registry, recall.embedder)

    async def decide(self, namespace: str, query: str, found: Recollection) -> Decision:
        """The route for ``query``, of which ``found`` was recalled."""
        manifest = await self._live.current(namespace)
        vector = (await self._recall.embedder.embed([query], kind="query"))[0]
        nearest = await self._learned.nearest(manifest, vector) if manifest else None
        entities = await self._entities(namespace, query, vector)
        big_picture = read.is_big_picture(query) or _asks_learned_big_picture(nearest, entities)
        features = Features(
            big_picture=big_picture,
            asks_memory=read.is_of_the_memory(query),
            entities=entities.named,
            known_entities=entities.known,
            best_dense=max((r.signals.dense for r in found.results if r.signals.dense is not None), default=None),
            margin=_margin(found),
            learned_similarity=nearest.similarity if nearest else None,
            adapter=manifest.name if manifest else None,
            newer_episodes=await self._newer(manifest) if manifest and big_picture else 0,
            fresh=bool(manifest) and _is_fresh(found, manifest),
        )
        return decide(features, _trust(manifest, nearest) if manifest else None)

    async def decide_task(self, namespace: str, found: Recollection) -> Decision:
        """The route for a task of an agent, for which ``found`` was recalled."""
        manifest = await self._live.current(namespace)
        best = max((r.signals.dense for r in found.results if r.signals.dense is not None), default=None)
        features = Features(big_picture=False, best_dense=best, adapter=manifest.name if manifest else None)
        return decide_task(features, _acting(manifest) if manifest else None)

    async def _entities(self, namespace: str, query: str, vector: Vectors) -> Entities:
        """Identifiers and dates count when there are any; names only where there are none of these."""
        store = self._recall.store
        made_up = read.identifiers(query)
        days = {f"{day.day} {day:%B %Y}": day for day in read.dates(query)}
        phrases = made_up or ([] if days else read.names(query))
        known = [phrase for phrase in phrases if await store.mentions(namespace, phrase)]
        for phrase, day in days.items():
            where = Filter(since=day, until=day + timedelta(days=1))
            if await store.candidates(namespace, query, vector, limit=1, where=where):
                known.append(phrase)
        return Entities((*phrases, *days), tuple(known))

    async def _newer(self, manifest: Manifest) -> int:
        stats = await self._recall.store.stats(manifest.namespace)
        return max(0, stats.trajectories - len(manifest.learned))


def _asks_learned_big_picture(nearest: Nearest | None, entities: Entities) -> bool:
    near = nearest is not None and nearest.fact.kind == "global" and nearest.similarity >= SAME_QUESTION
    return near and not entities.named


def _is_fresh(found: Recollection, manifest: Manifest | None) -> bool:
    """Whether the best episode is one that the adapter has not learned, or not as it is now."""
    if not found.results or manifest is None:
        return False
    best = found.results[0].trajectory_id
    learned = {(one.trajectory_id, one.content_hash) for one in manifest.learned}
    return (best, found.headings[best].content_hash) not in learned


def _margin(found: Recollection) -> float | None:
    """Score of the best passage minus the best of another episode."""
    if not found.results:
        return None
    best = found.results[0]
    others: Sequence[float] = [r.score for r in found.results if r.trajectory_id != best.trajectory_id]
    return best.score - max(others, default=0.0)


def _acting(manifest: Manifest) -> Acting | None:
    metrics = manifest.metrics
    if (alone := metrics.get("acting")) is None:
        return None
    return Acting(alone, metrics.get("acting_beside") or 0.0, metrics.get("acting_base") or 0.0)


def _trust(manifest: Manifest, nearest: Nearest | None) -> Trust:
    near = nearest is not None and nearest.similarity >= SAME_QUESTION
    return Trust(
        local_recall=manifest.metrics.get("local_recall") or 0.0,
        beside_context=manifest.metrics.get("beside_context") or 0.0,
        reading=manifest.metrics.get("reading") or 0.0,
        reading_base=manifest.metrics.get("reading_base") or 0.0,
        internalised=nearest.fact.internalised if nearest and near else None,
        asks_learned=near,
    )
