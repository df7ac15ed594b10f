import builtins
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.adapters.gate import decide
from rag_tuned_memory.adapters.manifest import Draft, Learned
from rag_tuned_memory.adapters.report import write_report
from rag_tuned_memory.distil.evaluation import Evaluation, ProbeRow, TrainingCurvePoint
from rag_tuned_memory.distil.recipe import Gate
from rag_tuned_memory.errors import MissingExtra

pytest.importorskip("jinja2", reason="the report needs the extra [local]")
pytest.importorskip("matplotlib", reason="the report needs the extra [local]")

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} \u202eevil \ud800"
VOID = {"meta", "br", "img", "link", "input", "hr", "path", "use", "rect", "line"}


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text; whether every tag that opens also closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def row(kind: str, correct: bool, question: str = "Which host failed?", answer: str = "db-7") -> ProbeRow:
    return ProbeRow(kind=kind, question=question, gold="db-3", answer=answer, correct=correct)  # type: ignore[arg-type]


def curve(steps: int) -> list[TrainingCurvePoint]:
    return [
        TrainingCurvePoint(step=n, tokens=512 * n, loss=4.0 / n, tokens_per_second=500.0) for n in range(1, steps + 1)
    ]


@pytest.fixture
def write(tmp_path: Path, draft: Callable[..., Draft]) -> Callable[..., tuple[Page, dict[str, Any], str]]:
    def call(
        rows: tuple[ProbeRow, ...] = (),
        points: list[TrainingCurvePoint] | None = None,
        dataset: dict[str, Any] | None = None,
        namespace: str = "alice",
        name: str | None = "alice-v1",
        metrics: dict[str, float] | None = None,
        **changes: Any,
    ) -> tuple[Page, dict[str, Any], str]:
        made = draft(**changes)
        figures = dict(made.metrics) if metrics is None else metrics
        evaluation = Evaluation(metrics=figures, rows=rows)  # type: ignore[arg-type]
        decision = decide(evaluation.metrics, Gate())
        points = curve(50) if points is None else points
        path = write_report(tmp_path, made, evaluation, decision, points, dataset or {}, namespace=namespace, name=name)
        text = path.read_text(encoding="utf-8")
        return Page(text), json.loads((tmp_path / "report.json").read_text()), text

    return call


def test_the_decision_and_its_reasons_come_first(write: Callable[..., Any]) -> None:
    page, data, _ = write(metrics={"local_recall": 0.5, "global_recall": float("nan")})
    assert page.open == []
    assert page.text.index("Rejected") < page.text.index("Measured against the thresholds")
    assert "misses 8 of the 8 thresholds" in page.text
    assert "Recall of local facts is 0.50; it must be at least 0.85." in page.text
    assert "Recall of global facts is NaN, which is no usable number." in page.text
    assert data["accepted"] is False
    assert data["metrics"] == {"local_recall": 0.5, "global_recall": None}
    assert [reason["passed"] for reason in data["reasons"]] == [False] * 8


def test_an_accepted_one(write: Callable[..., Any]) -> None:
    page, data, _ = write(dataset={"facts": 138, "contexts": {"none": 1234567}})
    assert "Accepted" in page.text
    assert "meets all 8 thresholds" in page.text
    assert "1,234,567" in page.text
    assert "contexts.none" in page.text
    assert data["dataset"] == {"facts": 138, "contexts": {"none": 1234567}}
    assert data["draft"]["versions"] == {"torch": "2.8.0"}
    assert len(data["curve"]) == 50


def test_the_table_by_kind_and_the_wrong_answers(write: Callable[..., Any]) -> None:
    rows = (
        row("local", True),
        row("local", False, answer="db-9"),
        row("unknown", True),
        row("global", False, answer=""),
    )
    page, data, _ = write(rows)
    assert data["by_kind"] == [
        {"kind": "local", "questions": 2, "right": 1, "share": 0.5},
        {"kind": "global", "questions": 1, "right": 0, "share": 0.0},
        {"kind": "unknown", "questions": 1, "right": 1, "share": 1.0},
    ]
    assert "50.0 %" in page.text
    assert page.text.count("db-9") == 1
    assert "(nothing)" in page.text
    assert "None." not in page.text


def test_long_lists_are_cut_and_say_so(write: Callable[..., Any]) -> None:
    many = tuple(Learned(trajectory_id=f"trajectory-{n}", content_hash=f"{n}") for n in range(503))
    page, data, _ = write(tuple(row("local", False) for _ in range(207)), learned=many)
    assert "And 7 more" in page.text
    assert "And 3 more" in page.text
    assert "trajectory-499" in page.text
    assert "trajectory-500" not in page.text
    assert len(data["rows"]) == 207
    assert len(data["draft"]["learned"]) == 503


def test_the_page_stands_alone(write: Callable[..., Any]) -> None:
    page, _, text = write(tuple(row("local", False) for _ in range(3)))
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "srcset") or name.startswith("on")]
    references = [value or "" for name, value in page.attributes if name.endswith("href")]
    assert all(value.startswith("#") for value in references)
    assert all(value.startswith("#") for value in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    assert ("http-equiv", "Content-Security-Policy") in page.attributes


@pytest.mark.parametrize("place", ["question", "answer", "namespace", "name", "dataset", "versions", "learned"])
def test_what_memories_say_is_escaped(write: Callable[..., Any], place: str) -> None:
    given: dict[str, Any] = {
        "question": {"rows": (row("local", False, question=HOSTILE),)},
        "answer": {"rows": (row("local", False, answer=HOSTILE),)},
        "namespace": {"namespace": HOSTILE.replace("\ud800", "")},
        "name": {"name": HOSTILE},
        "dataset": {"dataset": {HOSTILE: HOSTILE}},
        "versions": {"versions": {"x": HOSTILE.replace("\ud800", "")}},
        "learned": {"learned": (Learned(trajectory_id=HOSTILE.replace("\ud800", ""), content_hash="h"),)},
    }[place]
    page, _, text = write(**given)
    assert page.open == []
    assert "<script" not in text
    assert "img" not in page.tags
    assert "alert(1)" in page.text
    assert "{{ 7*7 }}" in page.text


@pytest.mark.parametrize(
    "losses", [[], [2.0], [2.0, float("nan"), 1.0], [float("nan")] * 3, [float("inf"), 1.0]], ids=str
)
def test_any_curve_is_drawn(write: Callable[..., Any], losses: list[float]) -> None:
    points = [TrainingCurvePoint(step=n, tokens=n, loss=loss, tokens_per_second=1.0) for n, loss in enumerate(losses)]
    page, data, _ = write(points=points)
    assert page.tags.count("svg") == (1 if losses else 0)
    assert ("No training curve was kept." in page.text) is (not losses)
    assert [point["loss"] for point in data["curve"]] == [x if x == x and x < 1e9 else None for x in losses]


def test_the_plot_takes_the_colours_of_the_page(write: Callable[..., Any]) -> None:
    page, _, text = write()
    plot = text[text.index("<svg") : text.index("</svg>")]
    assert "var(--accent)" in plot
    assert "trained tokens" in plot
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", plot)
    assert "metadata" not in page.tags


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_a_missing_library_is_named(write: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=rf"needs {module}.*pip install 'rag-tuned-memory\[local\]'"):
        write()
