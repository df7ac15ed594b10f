"""The examples run, and do what they say."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from rag_tuned_memory import Memory, Settings
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.distil.acting import teaches
from rag_tuned_memory.serving.base import Request
from rag_tuned_memory.serving.scripted import ScriptedBackend
from rag_tuned_memory.serving.tools import Call, called

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str, **options: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(
        command, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("answer", ["approve", "reject"])
def test_human_in_the_loop(answer: str) -> None:
    said = run("human_in_the_loop.py", "--answer", answer)
    assert 'It wants to: delete_logs {"host": "db-1", "older_than_days": 30}' in said
    assert said.count("Recorded: ") == 1
    assert ("tool_result: db-1: 180 GB freed" in said) == (answer == "approve")
    assert ("I may not delete the logs" in said) == (answer == "reject")


@pytest.mark.parametrize(("typed", "deleted"), [("y\n", True), ("\n", False)])
def test_somebody_is_asked(typed: str, deleted: bool) -> None:
    said = run("human_in_the_loop.py", input=typed)
    assert ("180 GB freed" in said) == deleted


def test_another_process_goes_on_where_the_first_one_stopped(tmp_path: Path) -> None:
    first = run("human_in_the_loop.py", "--home", str(tmp_path), "--stop")
    assert "Stopped here" in first
    assert "tool_call: delete_logs" not in first.split("Recorded")[0]
    second = run("human_in_the_loop.py", "--home", str(tmp_path), "--answer", "approve")
    assert second.startswith("Going on where somebody was asked.")
    assert second.count("Recorded: ") == 1
    assert [line.split(":")[0].strip() for line in second.splitlines()[-6:]] == [
        "message",
        "tool_call",
        "tool_result",
        "tool_call",
        "tool_result",
        "message",
    ]


def test_multi_user_server() -> None:
    said = run("multi_user_server.py", "--demo").splitlines()
    assert said[4:] == [
        "alice: What is my pet called?",
        "  I remember: My dog is called Rex.",
        "bob: What is my pet called?",
        "  I remember: My cat is called Tom.",
        "mallory: What is their pet called?",
        "  401 Who are you?",
    ]


def test_langgraph_store() -> None:
    said = run("langgraph_store.py").splitlines()
    assert said[4:8] == [
        "alice: What do I drink?",
        "  You drink green tea.",
        "bob: What do I drink?",
        "  I know only of your bicycle.",
    ]
    assert said[8:] == [
        """alice's memory: {"text": "green tea in the morning"}""",
        """bob's memory: {"text": "a red bicycle, to work"}""",
        "After alice's items were deleted: 0 passages",
    ]


def test_old_chain(tmp_path: Path) -> None:
    first = run("old_chain.py", "--home", str(tmp_path))
    assert first.count("the model is shown: - df result: the disk of db-1 is full") >= 1
    assert first.endswith("Episodes: rag-tuned-memory (2 steps) langchain-chat (6 steps)\n")
    second = run("old_chain.py", "--home", str(tmp_path))
    assert "the model is shown: Human: My dog is called Rex." in second
    assert "langchain-chat (12 steps)" in second


def in_the_right_way(request: Request) -> str:
    """A double of a model that has learnt: it ends whatever is a bad release, and only that."""
    goal, said = request.messages[1].content, request.messages[-1].content
    name, service = goal.split()[2].rstrip(":"), goal.split()[3]
    call = {
        2: ("get_alert", {"incident": name}),
        4: ("read_logs", {"service": service, "lines": 50}),
        6: ("roll_back", {"service": service}),
        8: ("close_incident", {"incident": name, "cause": "bad release", "fix": "roll back the release"}),
    }[len(request.messages)]
    return "I cannot." if "no change" in said else called("", [Call(name=call[0], arguments=call[1])])


def test_gets_better(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("gets_better")
    history = incidents("operations", episodes=8)
    right = ["bad release" in one.steps[4].text for one in history]
    with Memory("operations", settings=settings, backend=ScriptedBackend(in_the_right_way)) as memory:
        example.work(memory, runs=8, learn_after=0)
        said = capsys.readouterr().out.splitlines()
        assert [line.endswith("ended by the agent") for line in said] == right
        assert said[right.index(False)].endswith("ended by the operator (wrong fixes of the agent: 1)")
        kept = list(memory.export())
        assert len(kept) == right.count(False), "before it has learnt, what the model did is not recorded"
        assert all(teaches(one) == bool(one.outcome.success) for one in kept)
        example.work(memory, runs=8, learn_after=0)
        assert len(capsys.readouterr().out.splitlines()) == right.count(True)
