"""Figures follow from rows; rows survive being written; a table and plots show them."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rag_tuned_memory.errors import InvalidInput, InvalidRecord
from rag_tuned_memory.evaluation.plot import arms_table, plot_arms
from rag_tuned_memory.evaluation.results import ArmRow, ArmsResult
from rag_tuned_memory.evaluation.stamp import code_hash, hash_of, machine, prompts_hash, versions


def row(arm: Any, kind: Any, correct: bool, tokens: int = 0) -> ArmRow:
    question = f"{arm} {kind} {correct} {tokens}"
    return ArmRow(arm=arm, kind=kind, question=question, gold="g", answer="a", correct=correct, prompt_tokens=tokens)


RESULT = ArmsResult(
    rows=(
        row("tuned", "local", True, 30),
        row("tuned", "local", False, 30),
        row("tuned", "global", True, 50),
        row("retrieval", "local", True, 100),
    ),
    notes=("a note",),
    stamp={"seed": 1},
)


def test_each_kind_weighs_the_same_in_the_costs_of_an_arm() -> None:
    summary = RESULT.summary()
    assert summary["arms"] == {"retrieval": {"local": 1.0}, "tuned": {"local": 0.5, "global": 1.0}}
    assert summary["tokens"] == {"retrieval": 100.0, "tuned": 40.0}
    assert summary["questions"]["tuned"] == {"local": 2, "global": 1}


def test_written_results_are_read_again_and_computed_anew(tmp_path: Path) -> None:
    RESULT.write(tmp_path / "results")
    again = ArmsResult.read(tmp_path / "results")
    assert again == RESULT
    rows = tmp_path / "results" / "rows.jsonl"
    rows.write_text(rows.read_text().replace('"correct":false', '"correct":true'))
    assert ArmsResult.read(tmp_path / "results").accuracy()["tuned"]["local"] == 1.0


def test_a_broken_row_is_named_by_its_line(tmp_path: Path) -> None:
    RESULT.write(tmp_path)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    lines[2] = '{"arm": "best"}'
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(InvalidRecord, match=r"rows\.jsonl:3"):
        ArmsResult.read(tmp_path)
    with pytest.raises(InvalidInput, match="Run the experiment again"):
        ArmsResult.read(tmp_path / "nowhere")


def test_parts_of_an_experiment_are_put_together() -> None:
    later = ArmsResult(rows=(row("tuned", "fresh", True),), notes=("a note", "more"), stamp={"seed": 1, "episodes": 24})
    whole = RESULT.merged(later)
    assert len(whole.rows) == 5
    assert whole.notes == ("a note", "more")
    assert whole.stamp == {"seed": 1, "later": {"episodes": 24}}
    assert whole.kinds == ["local", "global", "fresh"]


def test_the_table_has_a_row_for_each_arm_and_a_dash_for_what_was_not_asked() -> None:
    out = StringIO()
    Console(file=out, width=100).print(arms_table(RESULT))
    lines = [line for line in out.getvalue().splitlines() if "retrieval" in line or "tuned" in line]
    assert [re.findall(r"\d+%|–", line) for line in lines] == [["100%", "–"], ["50%", "100%"]]


def test_plots_are_whole_files_that_fetch_nothing(tmp_path: Path) -> None:
    png, svg = plot_arms(RESULT, tmp_path / "plots")
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    assert not re.findall(r'(?:href|src)="(?!#)[^"]*"', text)
    assert "<svg" in text


def test_hashes_depend_on_content_and_on_where_it_is_cut() -> None:
    assert hash_of(["ab", "c"]) != hash_of(["a", "bc"])
    assert hash_of(["a", "b"]) == hash_of(iter(["a", "b"]))
    assert re.fullmatch(r"[0-9a-f]{64}", code_hash())
    assert code_hash() != prompts_hash()
    assert versions()["python"].count(".") == 2
    assert "hostname" not in machine()
