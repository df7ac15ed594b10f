"""Everything that is stored as one context: the arm without any choosing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rag_tuned_memory.recall.passages import HEADER_STEP
from rag_tuned_memory.recall.prompt import assemble
from rag_tuned_memory.recall.recollection import Recalled, Recollection, Signals
from rag_tuned_memory.serving.base import InferenceBackend
from rag_tuned_memory.store.base import EpisodeStore, Heading, Passage

_UNRANKED = Signals(dense=None, bm25=None, fused=0, neighbour=0, actor=0, episode=0)


@dataclass(frozen=True, slots=True)
class FullContext:
    """Fenced text of the newest ``episodes`` of ``of`` trajectories, in order of recording."""

    text: str
    tokens: int
    episodes: int
    of: int

    @property
    def note(self) -> str | None:
        """What must be said about a context that could not hold everything."""
        if self.episodes == self.of:
            return None
        return f"full_context holds the newest {self.episodes} of {self.of} episodes: more do not fit into the prompt"


async def full_context(
    store: EpisodeStore, namespace: str, backend: InferenceBackend, *, token_budget: int
) -> FullContext:
    """As many of the newest episodes as ``token_budget`` tokens can hold, every step of each."""
    episodes = [await _episode(store, namespace, one.trajectory.id) async for one in store.scan(namespace)]
    sizes = await backend.count_tokens([_text(namespace, [one]) for one in episodes]) if episodes else []
    kept = _fitting(sizes, token_budget)
    text = _text(namespace, episodes[len(episodes) - kept :])
    tokens = (await backend.count_tokens([text]))[0] if text else 0
    return FullContext(text, tokens, kept, len(episodes))


async def _episode(store: EpisodeStore, namespace: str, trajectory_id: str) -> tuple[Heading, list[Passage]]:
    headings = await store.headings(namespace, [trajectory_id])
    passages = await store.passages(namespace, trajectory_id)
    # goal and outcome stand in the heading, so the header passage would say them twice
    return headings[trajectory_id], [passage for passage in passages if passage.step != HEADER_STEP]


def _fitting(sizes: Sequence[int], budget: int) -> int:
    """How many from the end fit together."""
    used = 0
    for kept, size in enumerate(reversed(sizes)):
        used += size
        if used > budget:
            return kept
    return len(sizes)


def _text(namespace: str, episodes: Sequence[tuple[Heading, list[Passage]]]) -> str:
    results = tuple(_recalled(passage) for _, passages in episodes for passage in passages)
    headings = {heading.trajectory_id: heading for heading, _ in episodes}
    everything = Recollection(
        namespace=namespace, query="everything", k=max(1, len(results)), results=results, headings=headings
    )
    return assemble(everything)


def _recalled(passage: Passage) -> Recalled:
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
        score=0.0,
        signals=_UNRANKED,
        reason="everything is given",
    )
