"""Arms: who is asked what, what counts as right, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest

from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.errors import AdapterNotServable, InvalidInput
from rag_tuned_memory.evaluation.arms import ArmsLimits, evaluate_arms, is_right
from rag_tuned_memory.evaluation.full_context import full_context
from rag_tuned_memory.evaluation.questions import Question, questions_for
from rag_tuned_memory.evaluation.results import ARMS
from rag_tuned_memory.recall.prompt import has_injected

pytestmark = pytest.mark.anyio
LIMITS: dict[Any, int] = {"local": 8, "global": 8, "unknown": 6, "general": 4}


async def run(world: Any, questions: Any = None, **options: Any) -> Any:
    questions = questions or questions_for(world.selection, limits=LIMITS)
    parts = {"recall": world.recall, "backend": world.backend, "live": world.live}
    return await evaluate_arms("ops", questions, **parts, **options)


async def test_all_arms_answer_the_same_questions_and_are_judged_alike(world: Any) -> None:
    name = world.adopt()
    progress: list[tuple[str, int, int]] = []
    result = await run(world, on_progress=lambda *told: progress.append(told))
    asked = {row.question for row in result.rows}
    assert all([row.question for row in result.of(arm)] == [row.question for row in result.of("none")] for arm in ARMS)
    accuracy = result.accuracy()
    assert (accuracy["tuned"]["local"], accuracy["tuned"]["global"]) == (1.0, 1.0)
    assert (accuracy["none"]["local"], accuracy["none"]["general"]) == (0.0, 1.0)
    assert (accuracy["tuned"]["general"], accuracy["tuned"]["unknown"]) == (0.0, 0.0)
    assert (accuracy["routed"]["unknown"], accuracy["routed"]["general"]) == (1.0, 1.0)
    adapters = {arm: {row.adapter for row in result.of(arm)} for arm in ARMS}
    assert adapters["tuned"] == adapters["both"] == {name}
    assert adapters["none"] == adapters["full_context"] == adapters["retrieval"] == {None}
    assert [told for told in progress if told[1] == told[2]] == [(arm, len(asked), len(asked)) for arm in ARMS]


async def test_prompts_hold_what_the_arm_is_about(world: Any) -> None:
    world.adopt()
    question = questions_for(world.selection, limits=LIMITS)[0]
    prompts = {}
    for arm in ("none", "full_context", "retrieval", "tuned", "both"):
        world.backend.requests.clear()
        await run(world, [question], arms=[arm])
        prompts[arm] = world.backend.requests[-1]
    first = {arm: request.messages[0] for arm, request in prompts.items()}
    assert first["none"].role == "user"
    assert not has_injected(first["tuned"].content)
    assert has_injected(first["retrieval"].content)
    assert first["both"] == first["retrieval"]
    everything = first["full_context"].content
    assert all(str(stored.trajectory.source_id) in everything for stored in world.selection.stored)
    assert prompts["full_context"].shared_prefix == 1


async def test_costs_are_those_of_all_calls_that_an_answer_took(world: Any) -> None:
    world.adopt()
    unsure = questions_for(world.selection, limits=LIMITS)
    result = await run(world, unsure)
    for row in result.rows:
        assert row.calls == (0 if row.abstained else 1)
        assert (row.prompt_tokens > 0) == (row.calls > 0)
    summary = result.summary()
    assert summary["tokens"]["none"] < summary["tokens"]["retrieval"] < summary["tokens"]["full_context"]
    assert summary["calls"]["routed"] < 1


async def test_a_sample_keeps_a_slow_arm_short_and_is_noted(world: Any) -> None:
    result = await run(world, arms=["none", "full_context"], limits=ArmsLimits(sample={"full_context": 3}))
    counts = result.summary()["questions"]
    assert set(counts["full_context"].values()) <= {0, 3}
    assert counts["none"]["local"] == 8
    assert "full_context was asked the first 3 questions of each kind only" in result.notes


async def test_a_context_that_does_not_fit_keeps_the_newest_and_says_so(world: Any) -> None:
    whole = await full_context(world.recall.store, "ops", world.backend, token_budget=100_000)
    assert (whole.episodes, whole.of, whole.note) == (6, 6, None)
    part = await full_context(world.recall.store, "ops", world.backend, token_budget=whole.tokens // 2)
    assert 0 < part.episodes < 6
    assert part.tokens <= whole.tokens // 2
    assert str(world.selection.stored[-1].trajectory.source_id) in part.text
    assert str(world.selection.stored[0].trajectory.source_id) not in part.text
    assert f"newest {part.episodes} of 6" in (part.note or "")


async def test_news_is_read_by_retrieval_and_not_taken_from_the_adapter(world: Any) -> None:
    name = world.adopt()
    news = incidents("ops", episodes=2, skip=6)
    await world.recall.index_many(news)
    stored = [one async for one in world.recall.store.scan("ops", after=6)]
    fresh = [q for q in questions_for(world.selection, fresh=stored) if q.kind == "fresh"]
    result = await run(world, fresh, arms=["routed"])
    assert result.rows
    assert name not in {row.adapter for row in result.rows}


async def test_the_stamp_tells_data_questions_versions_and_machine(world: Any) -> None:
    world.adopt()
    questions = questions_for(world.selection, limits=LIMITS)
    one = (await run(world, questions, arms=["none"], seed=7)).stamp
    other = (await run(world, questions[:-1], arms=["none"])).stamp
    assert (one["seed"], one["adapter"], one["base_model"], one["k"]) == (7, "ops-v1", "scripted", 4)
    assert one["data_sha256"] == other["data_sha256"]
    assert one["questions_sha256"] != other["questions_sha256"]
    assert one["machine"]["cores"] >= 1
    assert "rag-tuned-memory" in one["versions"]


async def test_what_cannot_be_asked_is_refused_before_anything_is_asked(world: Any) -> None:
    question = Question(kind="local", text="What?", gold="x")
    with pytest.raises(InvalidInput, match="asked twice: 'What\\?'"):
        await run(world, [question, question])
    with pytest.raises(InvalidInput, match="no questions"):
        await evaluate_arms("ops", [], recall=world.recall, backend=world.backend, live=world.live)
    with pytest.raises(InvalidInput, match=r"named best; there are none, full_context"):
        await run(world, [question], arms=["best"])
    with pytest.raises(AdapterNotServable, match="rtm distil"):
        await run(world, [question])
    assert not world.backend.requests


@pytest.mark.parametrize(
    ("kind", "answer", "abstained", "right"),
    [
        ("local", "It was a full disk.", False, True),
        ("local", "It was the bad release.", False, False),
        ("local", "full disk", True, False),
        ("local", "no space left", False, True),
        ("unknown", "I have no memory of that.", False, True),
        ("unknown", "full disk", False, False),
        ("unknown", "full disk", True, True),
        ("general", "Paris.", False, True),
        ("general", "Paris", False, False),
    ],
)
def test_what_is_right(kind: Any, answer: str, abstained: bool, right: bool) -> None:
    question = Question(kind=kind, text="?", gold="full disk", aliases=("no space left",))
    assert is_right(question, answer, abstained=abstained, base_answer="Paris.") is right
