"""What the demonstration shows on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rag_tuned_memory.adapters.manifest import Manifest
from rag_tuned_memory.demo.bars import bars
from rag_tuned_memory.evaluation.arms import OnArm
from rag_tuned_memory.learning.events import Event, OnEvent
from rag_tuned_memory.models import OnProgress
from rag_tuned_memory.recall.recollection import Recollection
from rag_tuned_memory.routing.base import Answer
from rag_tuned_memory.trajectory import Trajectory

_STAGES = {
    "select": "select episodes",
    "teach": "questions of a teacher",
    "contexts": "recall contexts",
    "runs": "read runs that went well",
    "replay": "base answers to replay",
    "compose": "compose the dataset",
    "train": "train the adapter",
    "fingerprint": "fingerprint",
    "evaluate": "probe the adapter",
    "gate": "gate",
}


class Screen:
    """Headings, progress bars and tables on one console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    def step(self, number: int, title: str) -> None:
        """A heading."""
        self.console.print(f"\n[bold cyan]{number}[/bold cyan] [bold]{title}[/bold]")

    def say(self, text: str) -> None:
        """A line; markup is read."""
        self.console.print(text)

    @contextmanager
    def pulling(self) -> Iterator[OnProgress]:
        """Progress of downloads."""
        with bars(self.console) as tell:

            def report(stage: str, done: int, total: int | None) -> None:
                mega = 1_000_000 if total and total > 1_000_000 else 1
                if stage != "ready":
                    tell(stage, done // mega, total // mega if total else None, "MB" if mega > 1 else "")

            yield report

    @contextmanager
    def distilling(self) -> Iterator[OnEvent]:
        """Progress of each stage of a run; training tells loss, speed and time left."""
        with bars(self.console) as tell:

            def report(event: Event) -> None:
                detail = event.detail
                if (step := event.training) is not None:
                    speed = f"{step.tokens_per_second:,.0f} tokens/s"
                    detail = f"loss {step.loss:.2f} · {speed} · {step.seconds_left:.0f} s left"
                tell(_STAGES.get(event.stage, event.stage), event.done, event.total or None, detail)

            yield report

    @contextmanager
    def asking(self, title: str) -> Iterator[OnArm]:
        """Progress of each arm."""
        with bars(self.console) as tell:
            yield lambda arm, done, total: tell(f"{title} · {arm.replace('_', ' ')}", done, total, "")

    def episode(self, trajectory: Trajectory) -> None:
        """One recorded episode, its steps in a few words each."""
        lines = [
            f"{step.kind.value:12} {step.tool or step.actor or '':18} {_clip(step.text or str(step.arguments), 70)}"
            for step in trajectory.steps
        ]
        title = Text(_clip(trajectory.goal, 90))
        self.console.print(Panel(Text("\n".join(lines), style="dim"), title=title, title_align="left"))

    def recollection(self, found: Recollection) -> None:
        """What was recalled, with scores."""
        table = Table(title=Text(f"recalled for: {found.query}"), title_justify="left", show_lines=False)
        for name in ("score", "date", "who", "text"):
            table.add_column(name, overflow="fold")
        for result in found.results:
            date = f"{result.time:%d %b %Y}" if result.time else ""
            who = Text(result.tool or result.actor or "episode")
            table.add_row(f"{result.score:.2f}", date, who, Text(_clip(result.text, 90)))
        self.console.print(table)

    def gate(self, manifest: Manifest) -> None:
        """Each threshold and what was measured."""
        table = Table(title=f"gate of {manifest.name}", title_justify="left")
        table.add_column("measured")
        table.add_column("value", justify="right")
        table.add_column("must be", justify="right")
        table.add_column("")
        for verdict in manifest.decision.reasons:
            sign = "≥" if verdict.direction == "at_least" else "≤"
            value = "–" if verdict.value is None else f"{verdict.value:.2f}"
            mark = "[green]passed[/green]" if verdict.passed else "[red]failed[/red]"
            table.add_row(verdict.metric.replace("_", " "), value, f"{sign} {verdict.threshold:g}", mark)
        self.console.print(table)

    def answers(self, given: Sequence[tuple[str, str, str, Answer]]) -> None:
        """Questions with kind and gold answer, what was answered, by which route, and why."""
        for kind, question, gold, answer in given:
            text = Text.assemble((f"{kind:8}", "bold magenta"), question, "\n")
            text.append(f"{'':8}→ {answer.text}\n", style="bold green" if not answer.abstained else "bold yellow")
            who = answer.adapter or ("nobody" if answer.abstained else "base model")
            route = f"{answer.route.value}, {who}, {answer.prompt_tokens} prompt tokens"
            text.append(f"{'':8}  {route}: {answer.reason}\n", style="dim")
            if gold:
                text.append(f"{'':8}  right is: {gold}\n", style="dim")
            self.console.print(text, end="")

    def ending(self, summary: Mapping[str, Any], lines: Sequence[str]) -> None:
        """The last panel: where to look."""
        train = summary["distil"]
        memory = train["peak_memory_bytes"]
        peak = f", {memory / 2**30:.1f} GiB at most" if memory else ""
        speed = f"trained {train['tokens']:,} tokens in {train['seconds']:.0f} s"
        speed += f" ({train['tokens_per_second']:,.0f} tokens/s{peak})"
        self.console.print(Panel("\n".join([speed, *lines]), title="done", title_align="left"))


def _clip(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
