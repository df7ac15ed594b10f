from pathlib import Path

import pytest
from histories import demo, said, stored

from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.distil.gather import facts_of, recalled_contexts, select
from rag_tuned_memory.distil.phrasing import questions
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.embedding.hashing import HashingEmbedder
from rag_tuned_memory.errors import NotEnoughEpisodes
from rag_tuned_memory.recall.engine import Recall
from rag_tuned_memory.recall.prompt import CLOSING, OPENING
from rag_tuned_memory.serving.scripted import ScriptedBackend
from rag_tuned_memory.store import open_store

pytestmark = pytest.mark.anyio


def memory(folder: Path) -> Recall:
    return Recall(open_store(f"sqlite:///{folder / 'memory.db'}"), HashingEmbedder())


async def test_the_newest_episodes_are_taken(tmp_path: Path) -> None:
    recall = memory(tmp_path)
    await recall.index_many(incidents("ops", episodes=12))
    await recall.index_many(incidents("other", episodes=3, skip=50))
    selection = await select(recall.store, "ops", Recipe(max_episodes=5))
    newest = {trajectory.id for trajectory in incidents("ops", episodes=12)[-5:]}
    assert {one.trajectory.id for one in selection.stored} == newest
    assert {episode.view.trajectory_id for episode in selection.episodes} == newest
    assert {id_ for fact in selection.facts for id_ in fact.trajectory_ids} == newest
    assert len((await select(recall.store, "ops", Recipe())).episodes) == 12
    await recall.store.close()
    older = {f"incident {trajectory.source_id}" for trajectory in incidents("ops", episodes=7)}
    assert selection.known == older, "questions about strangers must not name them"


async def test_an_empty_namespace_teaches_nothing(tmp_path: Path) -> None:
    recall = memory(tmp_path)
    with pytest.raises(NotEnoughEpisodes, match=r"0 trajectories of namespace 'ops'.*Record more"):
        await select(recall.store, "ops", Recipe())
    await recall.store.close()


def test_episodes_that_show_nothing_teach_nothing() -> None:
    with pytest.raises(NotEnoughEpisodes, match="1 trajectories of namespace 'n'"):
        facts_of(stored([said("…", goal="?!")]), Recipe(), "n")


def test_limits_of_the_recipe_hold() -> None:
    facts = facts_of(demo(), Recipe(local_facts=2, global_facts=7), "ops").facts
    assert sum(fact.kind == "local" for fact in facts) == 40
    assert sum(fact.kind == "global" for fact in facts) == 7
    assert all(fact.kind == "local" for fact in facts_of(demo(), Recipe(global_facts=0), "ops").facts)


async def test_contexts_are_what_our_own_recall_finds_within_the_budget(tmp_path: Path) -> None:
    recall = memory(tmp_path)
    await recall.index_many(incidents("ops", episodes=6))
    recipe, backend = Recipe(context_k=3, context_tokens=60), ScriptedBackend(lambda _: "")
    facts = (await select(recall.store, "ops", recipe)).facts
    told: list[tuple[int, int]] = []
    contexts = await recalled_contexts(
        recall, "ops", facts, recipe, backend, on_progress=lambda done, total: told.append((done, total))
    )
    assert contexts.keys() == {fact.id for fact in facts}
    assert told[-1] == (len(facts), len(facts))
    for fact in facts:
        context = contexts[fact.id]
        found = await recall.recall("ops", questions(fact, "train")[0], k=3)
        assert context.count("\n- ") <= 3
        assert len(context.split()) <= 60  # the scripted backend counts words
        if context:
            assert context.startswith(OPENING)
            assert context.endswith(CLOSING)
            assert any(result.text.split("\n")[0][:40] in context for result in found.results)
    assert sum(bool(context) for context in contexts.values()) > len(facts) / 2
    await recall.store.close()


async def test_an_empty_memory_gives_empty_contexts(tmp_path: Path) -> None:
    recall = memory(tmp_path)
    facts = facts_of(demo(3), Recipe(), "ops").facts
    contexts = await recalled_contexts(recall, "ops", facts, Recipe(), ScriptedBackend(lambda _: ""))
    assert set(contexts.values()) == {""}
    await recall.store.close()
