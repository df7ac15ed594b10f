from pathlib import Path

import pytest

from rag_tuned_memory.distil.facts import normalise
from rag_tuned_memory.distil.replay import MAX_ANSWER_TOKENS, Replay, base_answers, general_prompts
from rag_tuned_memory.serving.base import Request
from rag_tuned_memory.serving.scripted import ScriptedBackend

pytestmark = pytest.mark.anyio


def answer(request: Request) -> str:
    question = request.messages[-1].content
    if question == general_prompts("train")[0]:
        return "word " * 100  # does not end by itself
    if question == general_prompts("train")[1]:
        return "  "
    return f" About: {question} "


def test_general_prompts_for_probing_are_never_trained() -> None:
    train, held_out = general_prompts("train"), general_prompts("held_out")
    assert len(train) > 100
    assert len(held_out) >= 20
    assert len({*map(normalise, train), *map(normalise, held_out)}) == len(train) + len(held_out)


async def test_the_base_answers_greedily_and_unfinished_answers_are_not_trained(tmp_path: Path) -> None:
    backend = ScriptedBackend(answer)
    told: list[tuple[int, int]] = []
    replays = await base_answers(backend, "train", tmp_path / "new", lambda *done: told.append(done))
    assert [replay.question for replay in replays] == list(general_prompts("train")[2:])
    assert all(replay.answer == f"About: {replay.question}" for replay in replays)
    assert {(r.adapter, r.temperature, r.max_new_tokens, len(r.messages)) for r in backend.requests} == {
        (None, 0.0, MAX_ANSWER_TOKENS, 1)
    }
    total = len(general_prompts("train"))
    assert told[-1] == (total, total)


async def test_answers_are_kept_for_the_same_base_only(tmp_path: Path) -> None:
    first = await base_answers(ScriptedBackend(answer), "held_out", tmp_path)
    again = ScriptedBackend(lambda _: "something else")
    assert await base_answers(again, "held_out", tmp_path) == first
    assert again.requests == []
    other = await base_answers(ScriptedBackend(lambda _: "x", base_model="another"), "held_out", tmp_path)
    assert {replay.answer for replay in other} == {"x"}
    assert len(other) == len(general_prompts("held_out"))


async def test_an_unfinished_answer_still_probes(tmp_path: Path) -> None:
    backend = ScriptedBackend(lambda _: "word " * 100)
    assert await base_answers(backend, "train", tmp_path) == []
    [first, *_] = await base_answers(backend, "held_out", tmp_path)
    assert first == Replay(question=general_prompts("held_out")[0], answer=("word " * MAX_ANSWER_TOKENS).strip())
