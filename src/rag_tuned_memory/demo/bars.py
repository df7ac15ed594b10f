"""Progress: live bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_LINES = 20.0

Tell = Callable[[str, int, int | None, str], None]
"""Called with what is done, how much of it, of how much (None: unknown), and a detail."""


@contextmanager
def bars(console: Console) -> Iterator[Tell]:
    """Something to tell progress to. May be called from any thread."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[detail]}"),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(name: str, done: int, total: int | None, detail: str) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total, detail=detail)
            progress.update(tasks[name], completed=done, total=total, detail=detail)

        yield tell


def _lines(console: Console) -> Tell:
    """A line at the first and the last word of each thing, and in between when a while has gone by."""
    last: dict[str, float] = {}

    def tell(name: str, done: int, total: int | None, detail: str) -> None:
        now = time.monotonic()
        finished = total is not None and done >= total
        if name in last and not finished and now - last[name] < SECONDS_BETWEEN_LINES:
            return
        last[name] = now
        amount = "" if not total else f" {done}/{total}"
        console.print(f"  {name}{amount} {detail}".rstrip(), highlight=False, markup=False)

    return tell
