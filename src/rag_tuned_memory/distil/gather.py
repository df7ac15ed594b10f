"""Select episodes and read facts off them; ask our own recall what it finds for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rag_tuned_memory.distil.facts import Fact
from rag_tuned_memory.distil.global_facts import global_facts
from rag_tuned_memory.distil.labels import Episode, label_episodes
from rag_tuned_memory.distil.local_facts import local_facts
from rag_tuned_memory.distil.phrasing import questions
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.distil.views import view
from rag_tuned_memory.errors import NotEnoughEpisodes
from rag_tuned_memory.recall.engine import Recall
from rag_tuned_memory.recall.prompt import assemble
from rag_tuned_memory.serving.base import InferenceBackend
from rag_tuned_memory.serving.tokens import token_counter
from rag_tuned_memory.store.base import EpisodeStore, StoredTrajectory


@dataclass(frozen=True, slots=True)
class Selection:
    """The episodes of one run, with the facts that they show. ``known``: what older, unselected episodes are called."""

    stored: tuple[StoredTrajectory, ...]
    episodes: tuple[Episode, ...]
    facts: tuple[Fact, ...]
    known: frozenset[str] = frozenset()


async def select(store: EpisodeStore, namespace: str, recipe: Recipe) -> Selection:
    """The newest ``recipe.max_episodes`` trajectories and their facts.

    Raises:
        NotEnoughEpisodes: the namespace is empty, or nothing can be asked of what it holds.
    """
    newest: deque[StoredTrajectory] = deque()
    known: set[str] = set()
    async for stored in store.scan(namespace):
        newest.append(stored)
        if len(newest) > recipe.max_episodes:
            (older,) = label_episodes([view(newest.popleft())])
            known |= {older.entity, older.label}
    return replace(facts_of(tuple(newest), recipe, namespace), known=frozenset(known))


def facts_of(stored: Sequence[StoredTrajectory], recipe: Recipe, namespace: str) -> Selection:
    """The facts of these trajectories."""
    episodes = label_episodes([view(one) for one in stored])
    facts = [
        *local_facts(episodes, per_episode=recipe.local_facts),
        *global_facts(episodes, limit=recipe.global_facts),
    ]
    if not facts:
        raise NotEnoughEpisodes(
            f"{len(stored)} trajectories of namespace {namespace!r} show nothing that can be asked",
            remedy="Record more episodes, with tool calls, outcomes or dates.",
        )
    return Selection(tuple(stored), tuple(episodes), tuple(facts))


async def recalled_contexts(
    recall: Recall,
    namespace: str,
    facts: Sequence[Fact],
    recipe: Recipe,
    backend: InferenceBackend,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """By fact id: the fenced text that recall puts into a prompt for one of the fact's questions."""
    count = token_counter(backend)
    contexts = {}
    for done, fact in enumerate(facts, start=1):
        found = await recall.recall(
            namespace,
            questions(fact, "train")[0],
            k=recipe.context_k,
            token_budget=recipe.context_tokens,
            count_tokens=count,
        )
        contexts[fact.id] = assemble(found)
        if on_progress:
            on_progress(done, len(facts))
    return contexts
