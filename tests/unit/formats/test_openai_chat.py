from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.errors import InvalidInput, InvalidNamespace, InvalidRecord
from rag_tuned_memory.formats import read_openai_chat
from rag_tuned_memory.trajectory import StepKind, Trajectory

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"where": "here"}'}}


def write(folder: Path, *records: Any) -> Path:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def one(folder: Path, record: Any) -> Trajectory:
    (trajectory,) = read_openai_chat(write(folder, record), "alice")
    return trajectory


def test_tool_calls_become_steps_with_parsed_arguments_and_results_name_their_call(tmp_path: Path) -> None:
    trajectory = one(
        tmp_path,
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Where is it?"},
            {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "Error: dark"},
            {"role": "assistant", "content": "", "reasoning_content": "It is dark.", "refusal": None},
        ],
    )
    said, spoke, call, result, thought = trajectory.steps
    assert trajectory.goal == said.text == "Where is it?"
    assert (spoke.kind, spoke.actor, spoke.text) == (StepKind.MESSAGE, "assistant", "I look.")
    assert (call.kind, call.tool, call.arguments, call.call_id) == (StepKind.TOOL_CALL, "look", {"where": "here"}, "c1")
    assert (result.kind, result.tool, result.call_id) == (StepKind.TOOL_RESULT, "look", "c1")
    assert (result.text, result.error) == ("Error: dark", "dark")
    assert (thought.kind, thought.text) == (StepKind.THOUGHT, "It is dark.")
    assert trajectory.source == "openai-chat"
    assert set(trajectory.metadata) == {"system_prompt_sha256"}
    assert "Be kind" not in trajectory.model_dump_json()


@pytest.mark.parametrize(
    ("arguments", "parsed", "text"),
    [
        ("{broken", None, "{broken"),
        ("[1, 2]", None, "[1, 2]"),
        ('{"a": NaN}', None, '{"a": NaN}'),
        ('{"a": 1, "a": 2}', None, '{"a": 1, "a": 2}'),
        ({"a": 1}, {"a": 1}, ""),
        ([1, 2], None, "[1, 2]"),
        ("", {}, ""),
    ],
)
def test_arguments_that_are_no_object_are_kept_as_text(tmp_path: Path, arguments: Any, parsed: Any, text: str) -> None:
    call = {"id": "c1", "function": {"name": "look", "arguments": arguments}}
    step = one(tmp_path, [{"role": "assistant", "content": None, "tool_calls": [call]}]).steps[0]
    assert (step.arguments, step.text) == (parsed, text)


def test_content_parts_older_calls_and_custom_tools(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": "data:xyz"}}, "this"]
    custom = {"id": "c2", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    user, older, answer, shell = one(
        tmp_path,
        [
            {"role": "user", "content": parts, "name": "Ann"},
            {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
            {"role": "function", "name": "look", "content": "seen"},
            {"role": "assistant", "content": None, "tool_calls": [custom]},
        ],
    ).steps
    assert (user.text, user.actor) == ("See\n[image_url]\nthis", "Ann")
    assert (older.tool, older.arguments, answer.tool, answer.text) == ("look", {}, "look", "seen")
    assert (shell.tool, shell.text, shell.call_id) == ("shell", "ls", "c2")


def test_an_object_may_carry_an_id_and_metadata(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    trajectory = one(tmp_path, {"messages": messages, "id": 7, "metadata": {"team": "x"}, "tools": []})
    assert (trajectory.source_id, trajectory.metadata) == ("7", {"team": "x"})
    assert one(tmp_path, {"messages": messages}).id == one(tmp_path, messages).id


BAD = [
    ({"other": 1}, "not a chat"),
    (3, "not a chat"),
    ([], "must be a list of messages that is not empty"),
    ({"messages": []}, "messages: must be a list of messages that is not empty"),
    ({"messages": [{"role": "system", "content": "only"}]}, "no message has any content"),
    ({"messages": ["hi"]}, r"messages\.0: a message must be an object"),
    ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\.0\.role: unknown role 'robot'; allowed are system"),
    ({"messages": [{"role": "user", "content": 3}]}, r"messages\.0\.content: must be text or a list"),
    ({"messages": [{"role": "user", "content": [3]}]}, r"messages\.0\.content\.0: a part"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, r"tool_calls\.0: a tool call needs a function"),
    ({"messages": [{"role": "assistant", "tool_calls": 3}]}, r"tool_calls: must be a list"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "not valid UTF-8"),
    ({"messages": [{"role": "user", "content": "x"}], "id": [1]}, "id: must be text or an integer"),
    ({"messages": [{"role": "user", "content": "x"}], "id": "1", "metadata": {"a": "\ud800"}}, "metadata: cannot be"),
    ({"traj": [{"role": "user", "content": "x"}], "task_id": 1, "trial": 0}, "reward: must be a number"),
    ({"traj": [{"role": "user", "content": "x"}], "task_id": 1, "reward": 0}, "trial: must be an integer"),
    ({"messages": [{"role": "user", "content": "x" * 1_000_001}]}, r"steps\.0: 1,000,\d+ bytes, at most 1,000,000"),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=range(len(BAD)))
def test_a_bad_record_names_its_line_and_place(tmp_path: Path, record: Any, message: str) -> None:
    good = [{"role": "user", "content": "hi"}]
    path = write(tmp_path, {"messages": good}, record, {"messages": good, "id": "2"})
    with pytest.raises(InvalidRecord, match=rf"chats\.jsonl:2: .*{message}") as caught:
        list(read_openai_chat(path, "alice"))
    assert (caught.value.line, caught.value.path) == (2, str(path))
    skipped: list[InvalidRecord] = []
    kept = list(read_openai_chat(path, "alice", on_error="skip", on_skip=skipped.append))
    assert len(kept) == 2
    assert [error.line for error in skipped] == [2]


def test_the_step_limit_is_a_setting(tmp_path: Path) -> None:
    path = write(tmp_path, [{"role": "user", "content": "x" * 50}])
    with pytest.raises(InvalidRecord, match="RTM_MAX_STEP_BYTES"):
        list(read_openai_chat(path, "alice", max_step_bytes=50))
    assert len(list(read_openai_chat(path, "alice", max_step_bytes=500))) == 1


def test_arguments_are_checked_before_the_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidNamespace):
        read_openai_chat(tmp_path / "absent", "")
    with pytest.raises(InvalidInput, match="'stop' and 'skip'"):
        read_openai_chat(tmp_path / "absent", "alice", on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(InvalidRecord, match="holds no records"):
        list(read_openai_chat(write(tmp_path), "alice"))


def test_tau_bench(recorded_data: Path) -> None:
    path = recorded_data / "tau-airline-dev.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    runs = list(read_openai_chat(path, "airline"))
    assert len(runs) == len({run.id for run in runs}) == 100
    assert sum(run.outcome.success is True for run in runs) == 31
    for record, run in zip(raw, runs, strict=True):
        assert run.source == "tau-bench"
        assert run.source_id == f"task {record['task_id']} trial {record['trial']}"
        assert run.goal == next(m["content"] for m in record["traj"] if m["role"] == "user")
        assert run.started_at == datetime(2024, 5, 15, 20, tzinfo=UTC)
        calls = [call for m in record["traj"] for call in m.get("tool_calls") or []]
        steps = [step for step in run.steps if step.kind is StepKind.TOOL_CALL]
        assert [json.loads(call["function"]["arguments"]) for call in calls] == [step.arguments for step in steps]
        results = [step for step in run.steps if step.kind is StepKind.TOOL_RESULT]
        assert {step.call_id for step in results} <= {step.call_id for step in steps}
        searchable = run.model_dump_json()
        assert record["info"]["task"]["instruction"] not in searchable
        assert "Airline Agent Policy" not in searchable
    failed = [step.error for run in runs for step in run.steps if step.error]
    assert len(failed) == 63
    assert all(not error.startswith("Error") for error in failed)
