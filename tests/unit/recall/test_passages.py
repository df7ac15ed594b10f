from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rag_tuned_memory.recall.passages import CHUNK_PIECES, HEADER_STEP, build_passages, spans, split
from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory

MAY = datetime(2023, 5, 8, 13, 56, tzinfo=UTC)


def pieces(text: str) -> int:
    return len(re.findall(r"[^\W_]{1,16}|[^\w\s]|_", text))


def trajectory(*steps: Step, **fields: object) -> Trajectory:
    return Trajectory.parse({"namespace": "alice", "steps": [s.model_dump() for s in steps], **fields})


def test_a_turn_is_indexed_with_its_speaker_and_date() -> None:
    step = Step(kind=StepKind.MESSAGE, actor="Caroline", text="I went hiking.", ref="D1:3")
    (passage,) = build_passages(trajectory(step, started_at=MAY))
    assert passage.text == "I went hiking."
    assert passage.indexed == "Caroline (8 May 2023): I went hiking."
    assert (passage.step, passage.chunk, passage.ref, passage.time) == (0, 0, "D1:3", MAY)


def test_a_steps_own_time_comes_before_the_episodes() -> None:
    own = datetime(2024, 12, 31, tzinfo=UTC)
    step = Step(kind=StepKind.MESSAGE, actor="user", text="hello", started_at=own)
    (passage,) = build_passages(trajectory(step, started_at=MAY))
    assert passage.time == own
    assert passage.indexed == "user (31 December 2024): hello"


def test_tools_are_named_with_their_arguments_and_errors() -> None:
    call = Step(kind=StepKind.TOOL_CALL, actor="agent", tool="restart", arguments={"service": "orion", "force": True})
    result = Step(kind=StepKind.TOOL_RESULT, tool="restart", text="no", error="timeout after 30 s")
    first, second = build_passages(trajectory(call, result))
    assert first.indexed == 'agent: restart({"service": "orion", "force": true})'
    assert first.tool == second.tool == "restart"
    assert second.indexed == "restart result: no\nerror: timeout after 30 s"


def test_a_header_is_made_only_where_there_is_a_goal() -> None:
    step = Step(kind=StepKind.MESSAGE, text="hi")
    assert [p.step for p in build_passages(trajectory(step))] == [0]
    outcome = Outcome(success=False, score=0.25, feedback="too slow").model_dump()
    header, _ = build_passages(trajectory(step, goal="book a flight", outcome=outcome, started_at=MAY))
    assert (header.step, header.kind) == (HEADER_STEP, None)
    assert header.text == "Goal: book a flight\nOutcome: failure, score 0.25, feedback: too slow"
    assert header.indexed.startswith("episode (8 May 2023): Goal: book a flight")


def test_long_steps_give_parts_that_end_with_sentences() -> None:
    sentence = "The agent restarted service number {} after the alarm had rung for some time. "
    text = "".join(sentence.format(i) for i in range(80))
    passages = build_passages(trajectory(Step(kind=StepKind.OBSERVATION, text=text, ref="r")))
    assert len(passages) > 4
    assert [p.chunk for p in passages] == list(range(len(passages)))
    assert all(p.text.endswith("some time.") and p.ref == "r" for p in passages)
    assert all(before.text.split(". ")[-1] in after.text for before, after in pairwise(passages))


def test_long_json_is_cut_between_its_members() -> None:
    text = json.dumps([{"flight": f"HAT{i}", "price": i, "seats": {"economy": i, "business": 2}} for i in range(60)])
    parts = split(text.replace(" ", ""))
    assert len(parts) > 3
    assert all(part.endswith((",", "]", "}")) for part in parts)


@pytest.mark.parametrize("text", ["x" * 100_000, "+" * 5_000, "日本" * 5_000, "_" * 3_000])
def test_text_without_any_boundary_is_cut_too(text: str) -> None:
    parts = split(text)
    assert len(parts) > 1
    assert all(pieces(part) <= CHUNK_PIECES for part in parts)


def test_a_step_of_white_space_gives_no_passage() -> None:
    steps = (Step(kind=StepKind.MESSAGE, text=" \n "), Step(kind=StepKind.MESSAGE, text="b"))
    assert [(p.step, p.text) for p in build_passages(trajectory(*steps))] == [(1, "b")]


@given(
    text=st.text(alphabet=st.sampled_from('ab. \n,{}"[]_é日'), max_size=400),
    most=st.integers(2, 20),
    overlap=st.integers(0, 9),
)
@example(text="}[[[[[,[[", most=7, overlap=6)
def test_parts_are_short_and_cover_the_text_in_order(text: str, most: int, overlap: int) -> None:
    found = spans(text, most=most, overlap=overlap)
    assert found[0][0] == 0
    assert found[-1][1] == len(text)
    assert all(pieces(text[begin:end]) <= most for begin, end in found)
    for (begin, end), (next_begin, next_end) in pairwise(found):
        assert begin < next_begin <= end < next_end
        assert pieces(text[next_begin:end]) <= overlap
    assert split(text, most=most, overlap=overlap) == [
        text[begin:end].strip() for begin, end in found if text[begin:end].strip()
    ]
