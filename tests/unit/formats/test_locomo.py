from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.errors import InvalidRecord
from rag_tuned_memory.formats import read_locomo, read_locomo_questions


def sample(**changes: Any) -> dict[str, Any]:
    conversation = {
        "speaker_a": "Ann",
        "session_2": [{"speaker": "Bo", "dia_id": "D2:1", "text": "Look", "blip_caption": "a red dog"}],
        "session_2_date_time": "12:05 am on 1 February, 2024",
        "session_1": [
            {"speaker": "Ann", "dia_id": "D1:1", "text": "Hello"},
            {"speaker": "Bo", "dia_id": "D1:2", "text": "", "blip_caption": "a cat"},
        ],
        "session_1_date_time": "12:30 pm on 31 January, 2024",
        "session_3": [],
        "session_4_date_time": "1:00 pm on 3 February, 2024",
    }
    conversation |= changes
    return {"sample_id": "conv-1", "conversation": conversation, "qa": []}


def write(folder: Path, *samples: Any) -> Path:
    path = folder / "locomo.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, samples)) + "\n]", encoding="utf-8")
    return path


def test_each_session_is_a_trajectory_and_each_turn_a_step(tmp_path: Path) -> None:
    first, second = read_locomo(write(tmp_path, sample()), "alice")
    assert (first.source, first.source_id, first.goal) == ("locomo", "conv-1 session 1", "")
    assert first.metadata == {"sample_id": "conv-1", "session": 1}
    assert first.started_at == datetime(2024, 1, 31, 12, 30, tzinfo=UTC)
    assert second.started_at == datetime(2024, 2, 1, 0, 5, tzinfo=UTC)
    assert [(s.actor, s.ref, s.text) for s in (*first.steps, *second.steps)] == [
        ("Ann", "D1:1", "Hello"),
        ("Bo", "D1:2", "[shares a photo: a cat]"),
        ("Bo", "D2:1", "Look [shares a photo: a red dog]"),
    ]


def test_a_bad_session_costs_that_session(tmp_path: Path) -> None:
    path = write(tmp_path, sample(), sample(session_1_date_time="yesterday"))
    with pytest.raises(InvalidRecord, match=r"locomo\.json:3: conv-1\.session_1_date_time: 'yesterday' is no time"):
        list(read_locomo(path, "alice"))
    skipped: list[InvalidRecord] = []
    kept = list(read_locomo(path, "alice", on_error="skip", on_skip=skipped.append))
    assert [trajectory.metadata["session"] for trajectory in kept] == [1, 2, 2]
    assert [error.line for error in skipped] == [3]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"a": 1}, "not a LoCoMo sample"),
        ({"conversation": {}}, "sample_id: must be text"),
        (sample(session_1={"a": 1}), "session_1: must be a list of turns"),
        (sample(session_1=[{"speaker": "Ann", "text": "x"}]), r"conv-1\.session_1\.0\.dia_id: must be text"),
        (sample(session_1_date_time="1:00 pm on 31 Smarch, 2024"), "no time"),
        (sample(session_1_date_time="1:00 pm on 31 June, 2024"), "no time"),
    ],
)
def test_bad_samples(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(InvalidRecord, match=message):
        list(read_locomo(write(tmp_path, record), "alice"))


def test_recorded_conversations(recorded_data: Path) -> None:
    path = recorded_data / "locomo-dev.json"
    raw = {s["sample_id"]: s["conversation"] for s in json.loads(path.read_text(encoding="utf-8"))}
    sessions = list(read_locomo(path, lambda sample_id: f"locomo-{sample_id}"))
    assert {t.namespace for t in sessions} == {f"locomo-{name}" for name in raw}
    assert len(sessions) == sum(isinstance(v, list) for c in raw.values() for v in c.values()) == 128
    assert sum(len(t.steps) for t in sessions) == 2760
    assert all(t.started_at for t in sessions)
    first = sessions[0]
    assert first.started_at == datetime(2023, 5, 8, 13, 56, tzinfo=UTC)
    assert (first.steps[2].actor, first.steps[2].ref) == ("Caroline", "D1:3")


def test_recorded_questions_point_at_turns(recorded_data: Path) -> None:
    path = recorded_data / "locomo-dev.json"
    questions = read_locomo_questions(path)
    assert {name: len(rows) for name, rows in questions.items()} == {
        "conv-26": 199,
        "conv-30": 105,
        "conv-41": 193,
        "conv-42": 260,
        "conv-43": 242,
    }
    turns = {(t.namespace, step.ref) for t in read_locomo(path, lambda name: name) for step in t.steps}
    rows = [row for rows in questions.values() for row in rows]
    assert sum(not row.evidence for row in rows) == 2
    # One of the data set's evidence strings names a turn that its conversation does not have.
    assert [(r.sample_id, e) for r in rows for e in r.evidence if (r.sample_id, e) not in turns] == [
        ("conv-42", "D10:19")
    ]
    assert {row.category for row in rows} == {1, 2, 3, 4, 5}
    assert all(row.answer for row in rows if row.category != 5)


def test_malformed_evidence(tmp_path: Path) -> None:
    record = sample()
    row = {"question": "Who?", "answer": 2022, "category": 1}
    record["qa"] = [
        {**row, "evidence": ["D8:6; D9:17", "D", "D:11:26", "D8:06"]},
        {**row, "evidence": []},
    ]
    first, second = read_locomo_questions(write(tmp_path, record))["conv-1"]
    assert (first.evidence, first.answer) == (("D8:6", "D9:17", "D11:26"), "2022")
    assert second.evidence == ()
    record["qa"] = [{"question": "Who?", "category": "x"}]
    with pytest.raises(InvalidRecord, match=r"locomo\.json:2: qa\.0\.category: must be an integer"):
        read_locomo_questions(write(tmp_path, record))
