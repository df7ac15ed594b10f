from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from incidents import episode
from rag_tuned_memory import __version__
from rag_tuned_memory.adapters import AdapterRegistry
from rag_tuned_memory.serving.scripted import ScriptedBackend
from served_adapter import register

COMMANDS = {"import", "export", "pull", "record", "feedback", "forget", "stats", "recall", "ask", "distil", "worker"}
COMMANDS |= {"doctor", "reindex", "migrate", "adapters", "eval", "serve-model"}
OPS = ("-n", "ops")


def record(rtm: Any, number: int = 1, namespace: str = "ops", **changes: Any) -> str:
    ran = rtm("record", "-n", namespace, "--json", stdin=json.dumps(episode(number, **changes)))
    assert ran.status == 0, ran.err
    return str(ran.json["id"])


def test_every_command_is_there(rtm: Any) -> None:
    ran = rtm("--help")
    assert ran.status == 0
    listed = {line.split()[0] for line in ran.out.partition("Commands:")[2].splitlines() if line.strip()}
    assert listed == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(rtm: Any, command: str) -> None:
    ran = rtm(command, "--help")
    assert ran.status == 0
    assert "Usage: rtm" in ran.out


def test_version(rtm: Any) -> None:
    assert rtm("--version").out == f"rtm {__version__}\n"


@pytest.mark.parametrize("command", [["stats"], ["recall", "x"], ["export"], ["adapters", "list"], ["distil"]])
def test_a_namespace_is_required(rtm: Any, command: list[str]) -> None:
    ran = rtm(*command)
    assert ran.status == 2
    assert "--namespace" in ran.error


def test_the_namespace_may_come_from_the_environment(rtm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTM_NAMESPACE", "ops")
    assert rtm("stats", "--json").json["namespace"] == "ops"


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["stats", "-n", "ops", "--nope"], ["recall", "-n", "ops"], ["ask", "x", "-n", "ops", "-k", "y"]],
)
def test_wrong_usage_is_one_line_and_status_2(rtm: Any, arguments: list[str]) -> None:
    ran = rtm(*arguments)
    assert ran.status == 2
    assert ran.error


def test_a_wrong_setting_is_named(rtm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTM_MAX_STEP_BYTES", "many")
    ran = rtm("stats", *OPS)
    assert ran.status == 1
    assert ran.error.startswith("RTM_MAX_STEP_BYTES: ")


def test_record_then_recall(rtm: Any) -> None:
    identity = record(rtm)
    found = rtm("recall", "which disk is full?", *OPS, "--json").json
    assert found["results"][0]["trajectory_id"] == identity
    table = rtm("recall", "which disk is full?", *OPS).out
    assert "disk of db-1" in table
    assert "matched by" in table


def test_record_from_a_file(rtm: Any, tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    file.write_text(json.dumps(episode()))
    assert "recorded" in rtm("record", str(file), *OPS).out
    assert "was there already" in rtm("record", str(file), *OPS).out


def test_what_stands_in_a_memory_cannot_change_the_terminal(rtm: Any) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07 disk [bold red]x[/] \u202egnp.exe :smile:"
    record(rtm, steps=[{"kind": "message", "text": evil}])
    out = rtm("recall", "disk", *OPS).out
    assert "\x1b[2J" not in out
    assert "\x1b]0" not in out
    assert "\u202e" not in out
    assert "[bold red]x[/]" in out
    assert ":smile:" in out


def test_namespaces_do_not_mix(rtm: Any) -> None:
    record(rtm)
    assert rtm("recall", "disk", "-n", "OPS", "--json").json["results"] == []
    assert rtm("recall", "disk", "-n", "OPS").out == "nothing recalled\n"


def test_filters(rtm: Any) -> None:
    record(rtm, 1)
    failed = record(rtm, 2, outcome={"success": False})
    assert {one["trajectory_id"] for one in rtm("recall", "disk", *OPS, "--failure", "--json").json["results"]} == {
        failed
    }
    assert {
        one["trajectory_id"] for one in rtm("recall", "disk", *OPS, "--since", "2026-03-02", "--json").json["results"]
    } == {failed}
    wrong = rtm("recall", "disk", *OPS, "--since", "yesterday")
    assert wrong.status == 1
    assert wrong.error.startswith("--since: ")


def test_ask_streams_and_explains(rtm: Any, scripted: ScriptedBackend) -> None:
    record(rtm)
    out = rtm("ask", "which disk is full?", *OPS, "--route", "retrieval").out
    assert out.startswith("the disk\n")
    assert "route retrieval: asked for" in out
    assert "disk of db-1" in out


def test_ask_for_programs(rtm: Any, scripted: ScriptedBackend, registry: AdapterRegistry, tmp_path: Path) -> None:
    identity = record(rtm)
    name = register(registry, "ops", tmp_path, [identity], sequence=1).name
    registry.promote(name, "test")
    answer = rtm("ask", "which disk is full?", *OPS, "--route", "tuned", "--json").json
    assert (answer["route"], answer["adapter"], answer["text"]) == ("tuned", name, "yes the disk was full")


def test_feedback_then_forget(rtm: Any) -> None:
    identity = record(rtm)
    assert rtm("feedback", identity, "well done", *OPS, "--score", "0.9", "--json").json == {
        "id": identity,
        "changed": True,
    }
    exported = json.loads(rtm("export", *OPS).out)
    assert exported["outcome"] == {"success": True, "score": 0.9, "feedback": "well done"}
    assert rtm("forget", identity, *OPS, "--json").json["removed"] == [identity]
    assert rtm("export", *OPS).out == ""


def test_forget_says_what_is_left_to_do(rtm: Any, registry: AdapterRegistry, tmp_path: Path) -> None:
    identity = record(rtm)
    name = register(registry, "ops", tmp_path, [identity], sequence=1).name
    out = rtm("forget", identity, "nobody", *OPS).out
    assert "1 trajectories removed" in out
    assert "not there: nobody" in out
    assert f"tainted, never serves again: {name}" in out
    assert "Still to do:" in out
    assert "rtm distil" in out


def test_forget_needs_to_be_told_what(rtm: Any) -> None:
    record(rtm)
    ran = rtm("forget", *OPS)
    assert ran.status == 1
    assert "either trajectory_ids or where" in ran.error
    assert rtm("stats", *OPS, "--json").json["store"]["trajectories"] == 1


def test_forget_all_removes_the_namespace(rtm: Any) -> None:
    identity = record(rtm)
    record(rtm, namespace="other")
    ran = rtm("forget", identity, "--all", *OPS)
    assert ran.status == 1
    assert "--all leaves nothing to choose" in ran.error
    assert rtm("forget", "--all", *OPS, "--json").json["removed"] == [identity]
    assert rtm("stats", *OPS, "--json").json["store"]["trajectories"] == 0
    assert rtm("stats", "-n", "other", "--json").json["store"]["trajectories"] == 1


def test_export_and_import(rtm: Any, tmp_path: Path) -> None:
    record(rtm, 1)
    record(rtm, 2)
    file = tmp_path / "out.jsonl"
    assert rtm("export", *OPS, "-o", str(file), "--json").json == {"exported": 2, "path": str(file)}
    counts = {"recorded": 2, "unchanged": 0, "skipped": []}
    assert rtm("import", str(file), "-n", "copy", "--json").json == counts
    assert rtm("import", str(file), "-n", "copy").out == "0 trajectories recorded, 2 were there already, 0 skipped\n"
    assert rtm("export", "-n", "copy").out == rtm("export", *OPS).out == file.read_text()


def test_migrate(rtm: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(rtm, 1)
    record(rtm, 2, namespace="other")
    here, there = f"sqlite:///{home / 'memory.db'}", f"sqlite:///{tmp_path / 'copy.db'}"
    moved = {"namespace": "ops", "moved": 1, "unchanged": 0}
    assert rtm("migrate", here, there, *OPS, "--json").json == {"namespaces": [moved]}
    assert rtm("migrate", here, there).out == (
        "ops: 0 trajectories moved, 1 were there already, all equal\n"
        "other: 1 trajectories moved, 0 were there already, all equal\n"
    )
    exported = rtm("export", *OPS).out
    monkeypatch.setenv("RTM_STORE", there)
    assert rtm("export", *OPS).out == exported
    assert rtm("migrate", "sqlite:///x.db", "postgres://y").error.startswith("store (RTM_STORE): no store has the URL")


def test_import_stops_at_a_bad_line_or_skips_it(rtm: Any, tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    good = [json.dumps(episode(n)) for n in (1, 2, 3)]
    file.write_text("\n".join([good[0], good[1], '{"steps": [}', good[2]]) + "\n")
    stopped = rtm("import", str(file), *OPS, "--format", "jsonl")
    assert stopped.status == 1
    assert stopped.error.startswith(f"{file}:3: ")
    assert "2 trajectories before it are recorded; --on-error skip leaves it out." in stopped.error
    assert rtm("stats", *OPS, "--json").json["store"]["trajectories"] == 2
    skipped = rtm("import", str(file), *OPS, "--on-error", "skip", "--json").json
    assert (skipped["recorded"], skipped["unchanged"]) == (1, 2)
    assert skipped["skipped"][0]["place"] == f"{file}:3"


@pytest.mark.parametrize("name", ["openai", "tau-bench", "locomo", "jsonl", "auto"])
def test_each_format_can_be_named(rtm: Any, tmp_path: Path, name: str) -> None:
    file = tmp_path / "empty.json"
    file.write_text("")
    ran = rtm("import", str(file), *OPS, "--format", name)
    assert ran.status == (0 if name == "jsonl" else 1)


def test_import_of_a_file_that_is_not_there(rtm: Any) -> None:
    assert rtm("import", "nowhere.json", *OPS).error == "nowhere.json: there is no such file"


def test_recorded_histories(rtm: Any, recorded_data: Path) -> None:
    tau = rtm("import", str(recorded_data / "tau-airline-dev.json"), "-n", "tau", "--json").json
    assert tau == {"recorded": 100, "unchanged": 0, "skipped": []}
    found = rtm("recall", "refund of a cancelled flight", "-n", "tau", "-k", "3", "--json").json
    assert len(found["results"]) == 3


def test_stats(rtm: Any) -> None:
    record(rtm, 1)
    record(rtm, 2, outcome={"success": False})
    found = rtm("stats", *OPS, "--json").json
    assert (found["store"]["trajectories"], found["store"]["failures"], found["newer_episodes"]) == (2, 1, 2)
    table = rtm("stats", *OPS).out
    assert "1 successes, 1 failures, 0 unknown" in table
    assert "retrieval answers" in table


def test_adapters(rtm: Any, registry: AdapterRegistry, tmp_path: Path) -> None:
    assert "no adapters" in rtm("adapters", "list", *OPS).out
    for _ in range(2):
        register(registry, "ops", tmp_path, ["t1"], sequence=1)
    assert rtm("adapters", "promote", "ops-v1", *OPS).out == "ops-v1 serves\n"
    assert rtm("adapters", "promote", "ops-v2", *OPS, "--json").json == {"name": "ops-v2", "state": "serving"}
    assert rtm("adapters", "rollback", *OPS).out == "ops-v1 serves again\n"
    listed = rtm("adapters", "list", *OPS, "--json").json
    assert [(one["name"], one["state"]) for one in listed] == [("ops-v1", "serving"), ("ops-v2", "retired")]
    assert "ops-v2" in rtm("adapters", "list", *OPS).out
    shown = rtm("adapters", "show", "ops-v1", *OPS).out
    assert "retired → serving: rolled back by hand" in shown
    assert rtm("adapters", "show", "ops-v1", *OPS, "--json").json["learned"][0]["trajectory_id"] == "t1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "ops-v9"], "there is no adapter ops-v9"),
        (["show", "../../etc"], "is no adapter's name"),
        (["promote", "ops-v1"], "is rejected and never serves"),
        (["promote", "other-v1"], "there is no adapter other-v1"),
        (["rollback"], "no earlier adapter"),
    ],
)
def test_adapters_that_cannot(
    rtm: Any, registry: AdapterRegistry, tmp_path: Path, arguments: list[str], message: str
) -> None:
    register(registry, "ops", tmp_path, ["t1"], accepted=False)
    register(registry, "other", tmp_path, ["t1"])
    ran = rtm("adapters", *arguments, *OPS)
    assert ran.status == 1
    assert message in ran.error


def test_doctor(rtm: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(rtm)
    ill = rtm("doctor", "--json")
    assert ill.status == 1
    assert [one["subject"] for one in ill.json["findings"] if not one["ok"]] == ["model SmolLM2-135M-Instruct"]
    assert "Run: rtm pull SmolLM2-135M-Instruct" in rtm("doctor").out
    monkeypatch.setenv("RTM_MODEL", str(tiny_model))
    assert rtm("doctor").status == 0
    assert rtm("doctor", "--mend", "--json").json["mended"] == []


def test_reindex(rtm: Any) -> None:
    record(rtm)
    assert rtm("reindex", *OPS, "--json").json == {"reindexed": 1}
    assert rtm("recall", "disk", *OPS, "--json").json["results"]


def test_eval_recall(rtm: Any, tmp_path: Path) -> None:
    turns = [{"speaker": "Ann", "dia_id": f"D1:{n}", "text": text} for n, text in enumerate(("hi", "I saw a fox"), 1)]
    sample = {
        "sample_id": "c1",
        "conversation": {"session_1": turns, "session_1_date_time": "1:56 pm on 8 May, 2023"},
        "qa": [{"question": "What did Ann see?", "answer": "a fox", "category": 4, "evidence": ["D1:2"]}],
    }
    file = tmp_path / "locomo.json"
    file.write_text(json.dumps([sample]))
    found = rtm("eval", "recall", str(file), "--format", "locomo", "-k", "10", "--json").json
    assert set(found) == {"recall_at_k", "k", "questions", "by_category"}
    assert (found["recall_at_k"], found["k"], found["questions"]) == (1.0, 10, 1)
    assert "1.000" in rtm("eval", "recall", str(file)).out


def test_eval_arms(
    rtm: Any, registry: AdapterRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: ScriptedBackend
) -> None:
    monkeypatch.setattr("rag_tuned_memory.memory.wiring.Parts.backend", lambda self: scripted)
    learned = [record(rtm, number) for number in range(1, 5)]
    registry.promote(register(registry, "ops", tmp_path, learned, sequence=4).name, "test")
    record(rtm, 5)
    folder = tmp_path / "arms"
    found = rtm("eval", "arms", *OPS, "--per-kind", "2", "-o", str(folder), "--json")
    assert found.status == 0, found.err
    assert set(found.json["arms"]) == {"none", "full_context", "retrieval", "tuned", "both", "routed"}
    assert found.json["questions"]["tuned"]["fresh"] == 2
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == sum(sum(counts.values()) for counts in found.json["questions"].values())
    assert (folder / "arms.png").stat().st_size > 1000
    assert "routed" in rtm("eval", "arms", *OPS, "--per-kind", "1").out


def test_worker_once(rtm: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTM_MODEL", str(tiny_model))
    record(rtm)
    record(rtm, namespace="other")
    ran = rtm("worker", "--all", "--once", "--json")
    assert ran.status == 0
    rounds = [json.loads(line) for line in ran.out.splitlines()]
    assert [(one["namespace"], one["kind"]) for one in rounds] == [("ops", "waits"), ("other", "waits")]
    assert rtm("worker", "-n", "ops", "--once").out.startswith("ops: waits: 1 trajectories in all")


@pytest.mark.parametrize("arguments", [[], ["--all", "-n", "ops"]])
def test_worker_needs_to_know_whose(rtm: Any, arguments: list[str]) -> None:
    ran = rtm("worker", *arguments)
    assert ran.status == 2
    assert "either --namespace (-n), or --all" in ran.error


def test_a_worker_that_can_never_fire(rtm: Any) -> None:
    never = ("--every-n", "0", "--at-least-every", "0", "--after-failures", "0")
    assert "can never fire" in rtm("worker", *OPS, *never).error


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"lora": {"rank": 0}}', "lora.rank"), ("[]", "a recipe is a JSON object"), ("{", ":1: not valid JSON")],
)
def test_a_bad_recipe(rtm: Any, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(text)
    ran = rtm("distil", *OPS, "--recipe", str(file))
    assert ran.status == 1
    assert message in ran.error
    assert str(file) in ran.error


def test_the_reader_of_a_pipe_may_go_away(rtm: Any) -> None:
    for number in range(1, 20):
        record(rtm, number, steps=[{"kind": "message", "text": "long " * 2000}])
    program = [sys.executable, "-c", "import sys; from rag_tuned_memory.cli import main; sys.exit(main())"]
    with subprocess.Popen(
        [*program, "export", *OPS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == b""
