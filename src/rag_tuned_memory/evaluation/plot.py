"""Arms as a picture and as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rag_tuned_memory.evaluation.results import ArmsResult
from rag_tuned_memory.models import require

if TYPE_CHECKING:
    from rich.table import Table

COLOURS = {
    "none": "#9aa0a6",
    "full_context": "#c58b3b",
    "retrieval": "#3b7dd8",
    "tuned": "#7a4fbf",
    "both": "#2b9a8f",
    "routed": "#d1495b",
}
_LABELS = {"full_context": "full context"}


def arms_table(result: ArmsResult, *, title: str = "Right answers by arm and kind of question") -> Table:
    """A table for a terminal; the best of each column is bold."""
    from rich.table import Table

    accuracy, summary = result.accuracy(), result.summary()
    best = {kind: max(values.get(kind, 0.0) for values in accuracy.values()) for kind in result.kinds}
    table = Table(title=title)
    table.add_column("arm")
    for kind in result.kinds:
        table.add_column(kind, justify="right")
    for name in ("prompt tokens", "calls", "s/answer"):
        table.add_column(name, justify="right", style="dim")
    for arm in result.arms:
        cells = [_cell(accuracy[arm].get(kind), best[kind]) for kind in result.kinds]
        costs = [
            f"{summary['tokens'][arm]:,.0f}",
            f"{summary['calls'][arm]:.2f}",
            f"{summary['seconds'][arm]:.2f}",
        ]
        table.add_row(_LABELS.get(arm, arm), *cells, *costs)
    return table


def plot_arms(result: ArmsResult, folder: Path) -> list[Path]:
    """Draw accuracy by kind and prompt tokens by arm; returns ``arms.png`` and ``arms.svg`` in ``folder``.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require("matplotlib")
    from matplotlib.figure import Figure

    accuracy, tokens = result.accuracy(), result.summary()["tokens"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 1])
    width = 0.8 / len(result.arms)
    for number, arm in enumerate(result.arms):
        places = [index + (number - (len(result.arms) - 1) / 2) * width for index in range(len(result.kinds))]
        heights = [accuracy[arm].get(kind, 0.0) for kind in result.kinds]
        bars = left.bar(places, heights, width * 0.92, label=_LABELS.get(arm, arm), color=COLOURS[arm])
        left.bar_label(bars, labels=[f"{height:.0%}" for height in heights], fontsize=6, padding=1)
    counts = result.summary()["questions"]
    most = {kind: max(counts[arm][kind] for arm in result.arms) for kind in result.kinds}
    left.set_xticks(range(len(result.kinds)), [f"{kind}\n({most[kind]} questions)" for kind in result.kinds])
    left.set_ylim(0, 1.12)
    left.set_ylabel("share of right answers")
    left.legend(ncols=3, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 1.16), frameon=False)
    names = [_LABELS.get(arm, arm) for arm in result.arms]
    bars = right.barh(names, [tokens[arm] for arm in result.arms], color=[COLOURS[arm] for arm in result.arms])
    right.bar_label(bars, labels=[f" {tokens[arm]:,.0f}" for arm in result.arms], fontsize=7)
    right.set_xscale("log")
    right.set_xlim(right=max(max(tokens.values()), 1) * 6)
    right.invert_yaxis()
    right.set_xlabel("prompt tokens an answer")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "arms.png", folder / "arms.svg"]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _cell(value: float | None, best: float) -> str:
    if value is None:
        return "–"
    return f"[bold]{value:.0%}[/bold]" if value == best and value > 0 else f"{value:.0%}"
