"""The report of a distillation run: ``report.json`` for programs, ``report.html`` for people.

The page stands alone: no network, no scripts, its plots inside it. What memories and models said in it is hostile until
proven otherwise: everything is escaped, and a content security policy forbids the browser to run or fetch anything.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from rag_tuned_memory.adapters.gate import MEASURES, Decision, Verdict
from rag_tuned_memory.adapters.manifest import Draft
from rag_tuned_memory.distil.evaluation import Evaluation, ProbeRow, QuestionKind, TrainingCurvePoint
from rag_tuned_memory.errors import MissingExtra

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
_TEMPLATE = "report.html.jinja"
_MOST_WRONG_ROWS = 200
_MOST_IDS = 500

FloatArray = NDArray[np.float64]

# Colours that are drawn with, and the variables of the page that replace them, so that plots follow light and dark.
_THEME = {"#010203": "var(--accent)", "#040506": "var(--faint)", "#070809": "var(--soft)", "#0a0b0c": "var(--line)"}
_ACCENT, _FAINT, _SOFT, _LINE = _THEME


def write_report(
    folder: Path,
    draft: Draft,
    evaluation: Evaluation,
    decision: Decision,
    curve: Sequence[TrainingCurvePoint],
    dataset: Mapping[str, Any],
    *,
    namespace: str,
    name: str | None = None,
) -> Path:
    """Write both files into ``folder`` and return the path of ``report.html``.

    ``draft`` may be a manifest too. ``dataset`` is a summary for the reader (how many facts, examples, contexts …): any
    JSON values by label. ``name`` is the adapter's, where it is known already (``AdapterRegistry.next_name``).

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    parts = _Parts(draft, evaluation, decision, curve, dataset, namespace, name)
    page = _render(parts)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_data(parts), indent=2, ensure_ascii=True, allow_nan=False)
    (folder / REPORT_JSON).write_text(text + "\n", encoding="utf-8")
    path = folder / REPORT_HTML
    # A model can emit half a surrogate pair, which UTF-8 cannot hold.
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


@dataclass(frozen=True, slots=True)
class _Parts:
    """What both files are made of."""

    draft: Draft
    evaluation: Evaluation
    decision: Decision
    curve: Sequence[TrainingCurvePoint]
    dataset: Mapping[str, Any]
    namespace: str
    name: str | None


def _data(parts: _Parts) -> dict[str, Any]:
    """Everything of the report as JSON values; a number that is NaN or infinite becomes None."""
    return {
        "name": parts.name,
        "namespace": parts.namespace,
        "accepted": parts.decision.accepted,
        "reasons": [_plain(verdict) for verdict in parts.decision.reasons],
        "metrics": _plain(parts.evaluation.metrics),
        "by_kind": _kinds(parts.evaluation.rows),
        "rows": [_plain(row) for row in parts.evaluation.rows],
        "curve": [_plain(point) for point in parts.curve],
        "dataset": _plain(parts.dataset),
        "draft": _plain(parts.draft),
    }


def _kinds(rows: Sequence[ProbeRow]) -> list[dict[str, Any]]:
    """For each kind of question that was asked: how many there were, and how many were answered right."""
    table = []
    for kind in get_args(QuestionKind):
        asked = [row for row in rows if row.kind == kind]
        if asked:
            right = sum(row.correct for row in asked)
            table.append({"kind": kind, "questions": len(asked), "right": right, "share": right / len(asked)})
    return table


def _render(parts: _Parts) -> str:
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise _missing("jinja2") from error
    draft, curve, rows = parts.draft, parts.curve, parts.evaluation.rows
    wrong = [row for row in rows if not row.correct]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = _number
    template = environment.from_string(files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        title=parts.name or f"Adapter of {parts.namespace}",
        namespace=parts.namespace,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        decision=parts.decision,
        bullets=[_bullet(verdict) for verdict in parts.decision.reasons],
        kinds=_kinds(rows),
        wrong=wrong[:_MOST_WRONG_ROWS],
        more_wrong=max(0, len(wrong) - _MOST_WRONG_ROWS),
        loss_plot=Markup(_loss_plot(curve)) if curve else None,  # drawn here, from numbers alone
        last_loss=curve[-1].loss if curve else None,
        dataset=_flat(parts.dataset),
        draft=draft,
        learned=draft.learned[:_MOST_IDS],
        more_learned=max(0, len(draft.learned) - _MOST_IDS),
        recipe=_flat(draft.recipe.model_dump(exclude={"gate"})),
    )


def _bullet(verdict: Verdict) -> dict[str, Any]:
    """One row of the plot of metrics against thresholds, in percent of the row's own scale."""
    measure = MEASURES[verdict.metric]
    value = verdict.value
    finite_top = max(1.5 * verdict.threshold, 1.1 * (value or 0), 1e-9)
    top = measure.high if math.isfinite(measure.high) else finite_top
    return {
        "verdict": verdict,
        "label": measure.label,
        "value_percent": None if value is None else 100 * min(max(value, 0.0), top) / top,
        "threshold_percent": 100 * min(verdict.threshold, top) / top,
        "top": top,
    }


def _loss_plot(curve: Sequence[TrainingCurvePoint]) -> str:
    """Training loss against trained tokens as an SVG element whose colours are the page's."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise _missing("matplotlib") from error
    tokens = [point.tokens for point in curve]
    losses = [point.loss if math.isfinite(point.loss) else math.nan for point in curve]
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}):
        figure = Figure(figsize=(8.6, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.plot(tokens, losses, color=_FAINT, linewidth=1, marker="o" if len(curve) == 1 else None)
        axes.plot(tokens, _smooth(losses), color=_ACCENT, linewidth=2)
        axes.set_xlabel("trained tokens", color=_SOFT)
        axes.set_ylabel("loss (nats a token)", color=_SOFT)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        axes.grid(axis="y", color=_LINE, linewidth=0.8)
        axes.tick_params(colors=_SOFT, length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_axisbelow(True)
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = target.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for colour, variable in _THEME.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg ", '<svg role="img" aria-label="Training loss against trained tokens" ', 1)


def _smooth(values: Sequence[float]) -> FloatArray:
    """The mean of the steps around each one (a fifteenth of the run), leaving out what is no number."""
    losses = np.asarray(values, dtype=np.float64)
    known = np.isfinite(losses)
    window = np.ones(2 * (len(losses) // 30) + 1)
    counts = np.convolve(known, window, mode="same")
    sums = np.convolve(np.where(known, losses, 0.0), window, mode="same")
    smooth: FloatArray = np.divide(sums, counts, out=np.full_like(sums, math.nan), where=counts > 0)
    return smooth


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as (label, value) pairs, labels joined by a dot."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        label = f"{prefix}{key}"
        pairs.extend(_flat(value, f"{label}.") if isinstance(value, Mapping) else [(label, value)])
    return pairs


def _plain(value: Any) -> Any:
    """``value`` as JSON values; what JSON cannot hold as a number becomes None."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _number(value: Any) -> str:
    """A number for people: thousands apart, four significant digits; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _missing(module: str) -> MissingExtra:
    return MissingExtra(f"the report needs {module}", remedy="pip install 'rag-tuned-memory[local]'")
