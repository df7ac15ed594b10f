from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag_tuned_memory.errors import InvalidRecord
from rag_tuned_memory.formats import IMPORTERS, detect_format, read_jsonl, read_locomo_questions, write_jsonl
from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, json_values, max_size=3)
times = st.none() | st.datetimes(
    min_value=datetime(1900, 1, 2),
    max_value=datetime(2200, 1, 1),
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
steps = st.builds(
    Step,
    kind=st.sampled_from(StepKind),
    text=words,
    actor=st.none() | texts,
    tool=words,
    arguments=st.none() | objects,
    call_id=st.none() | texts,
    ref=st.none() | texts,
    started_at=times,
    error=st.none() | texts,
    metadata=objects,
)
trajectories = st.builds(
    Trajectory,
    namespace=st.just("alice"),
    steps=st.lists(steps, min_size=1, max_size=4).map(tuple),
    goal=texts,
    outcome=st.builds(
        Outcome,
        success=st.none() | st.booleans(),
        score=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        feedback=st.none() | texts,
    ),
    started_at=times,
    source=texts,
    source_id=st.none() | words,
    metadata=objects,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(episodes=st.lists(trajectories, max_size=4))
def test_what_was_written_is_read_back(tmp_path: Path, episodes: list[Trajectory]) -> None:
    path = tmp_path / "episodes.jsonl"
    assert write_jsonl(path, episodes) == len(episodes)
    assert path.read_bytes().count(b"\n") == len(episodes)
    again = list(read_jsonl(path, "alice"))
    assert again == episodes
    assert [t.content_hash for t in again] == [t.content_hash for t in episodes]


def line(**changes: Any) -> str:
    return json.dumps({"steps": [{"kind": "message", "text": "hi"}], **changes})


def test_the_importer_says_whose_episodes_they_are(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text(line(namespace="mallory", id="nonsense"))
    (trajectory,) = read_jsonl(path, "alice")
    assert trajectory.namespace == "alice"
    write_jsonl(path, [trajectory])
    assert "alice" not in path.read_text()
    assert trajectory.id not in path.read_text()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(steps=[]), "steps: .*at least 1"),
        (line(steps=[{"kind": "dance", "text": "x"}]), r"steps\.0\.kind: Input should be 'message', 'thought'"),
        (line(steps=[{"kind": "tool_call", "text": "x"}]), r"steps\.0: .*needs 'tool'"),
        (line(colour="red"), "colour: Extra inputs"),
        (line(outcome={"score": "high"}), r"outcome\.score"),
        ("[]", "not a trajectory"),
        ("17", "not a trajectory"),
        ('{"steps": [', "not JSON"),
        (line(goal="x").replace('"x"', "NaN"), "NaN is not JSON"),
        (line()[:-1] + ', "steps": []}', "'steps' occurs twice"),
    ],
)
def test_line_17_is_bad(tmp_path: Path, bad: str, message: str) -> None:
    path = tmp_path / "episodes.jsonl"
    lines = [line(source_id=str(index)) for index in range(1, 31)]
    lines[16] = bad
    path.write_text("\r\n".join(lines))
    with pytest.raises(InvalidRecord, match=rf"episodes\.jsonl:17: .*{message}"):
        list(read_jsonl(path, "alice"))
    skipped: list[InvalidRecord] = []
    kept = list(read_jsonl(path, "alice", on_error="skip", on_skip=skipped.append))
    assert [t.source_id for t in kept] == [str(index) for index in range(1, 31) if index != 17]
    assert [error.line for error in skipped] == [17]


@pytest.mark.parametrize("depth", [50, 200, 500, 900, 2000, 20_000])
def test_deep_nesting_is_taken_or_refused(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text(
        line()[:-1] + ', "source_id": "1", "metadata": ' + '{"a":' * depth + "1" + "}" * depth + "}\n" + line()
    )
    skipped: list[InvalidRecord] = []
    kept = list(read_jsonl(path, "alice", on_error="skip", on_skip=skipped.append))
    assert len(kept) + len(skipped) == 2
    write_jsonl(tmp_path / "again.jsonl", kept)


def test_a_50_mb_step_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    large = {"kind": "message", "text": "x" * 50_000_000}
    path.write_text(line(steps=[{"kind": "message", "text": "small"}, large]) + "\n" + line())
    with pytest.raises(InvalidRecord, match=r"episodes\.jsonl:1: steps\.1: 50,000,\d+ bytes, at most 1,000,000"):
        list(read_jsonl(path, "alice"))
    assert len(list(read_jsonl(path, "alice", on_error="skip"))) == 1


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    episode = Trajectory(namespace="alice", steps=(Step(kind=StepKind.MESSAGE, text="hi"),))
    write_jsonl(path, [episode])
    before = path.read_bytes()

    def broken() -> Iterator[Trajectory]:
        yield episode
        raise RuntimeError("the store went away")

    with pytest.raises(RuntimeError, match="went away"):
        write_jsonl(path, broken())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (line(), "jsonl"),
        ("nope\n" + line(), "jsonl"),
        ('[{"role": "user", "content": "x"}]', "openai-chat"),
        ('[[{"role": "user", "content": "x"}]]', "openai-chat"),
        ('{"messages": []}', "openai-chat"),
        ('[{"traj": [], "task_id": 0}]', "openai-chat"),
        ('[\n{"qa": [], "conversation": {}, "sample_id": "a"}]', "locomo"),
    ],
)
def test_detect(tmp_path: Path, content: str, name: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    assert detect_format(path) == name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no records"),
        ('\n{"a": 1}', "file:2: the record has no known form. Name its format: --format openai-chat"),
        ("nope", "file:1: not JSON"),
        ("[nope]", "file:1: not JSON"),
    ],
)
def test_what_cannot_be_detected(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(InvalidRecord, match=message):
        detect_format(path)


def test_detect_recorded_files(recorded_data: Path) -> None:
    assert detect_format(recorded_data / "tau-airline-dev.json") == "openai-chat"
    assert detect_format(recorded_data / "locomo-dev.json") == "locomo"


KEYS = (
    *("messages", "traj", "steps", "conversation", "sample_id", "session_1", "session_1_date_time", "qa", "evidence"),
    *("role", "content", "tool_calls", "function", "name", "arguments", "type", "text", "kind", "tool", "outcome"),
    *("task_id", "trial", "reward", "id", "metadata", "tool_call_id", "speaker", "dia_id", "question", "category"),
)
hostile = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "tool"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)
near_chats = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant", "tool", "system"])},
                optional=dict.fromkeys(("content", "tool_calls", "name", "tool_call_id", "function_call"), hostile),
            )
        )
    }
)


@pytest.mark.parametrize("name", IMPORTERS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(values=st.lists(hostile | near_chats, min_size=1, max_size=3), array=st.booleans())
def test_no_file_breaks_an_importer_in_any_other_way(tmp_path: Path, name: str, values: list, array: bool) -> None:
    path = tmp_path / "file"
    path.write_text(json.dumps(values) if array else "\n".join(map(json.dumps, values)))
    skipped: list[InvalidRecord] = []
    with suppress(InvalidRecord):
        for trajectory in IMPORTERS[name](path, "alice", on_error="skip", on_skip=skipped.append):
            assert Trajectory.model_validate_json(trajectory.model_dump_json()) == trajectory
    with suppress(InvalidRecord):
        read_locomo_questions(path)
