"""Looking after it: ``rtm doctor`` and ``rtm reindex``."""

from __future__ import annotations

import sys
from typing import Annotated

import anyio
import typer

from rag_tuned_memory.cli.options import Json, Namespace, open_memory
from rag_tuned_memory.cli.output import console, one_line, print_json
from rag_tuned_memory.memory.health import Finding, check_health
from rag_tuned_memory.memory.wiring import Parts


def doctor(
    mend: Annotated[
        bool, typer.Option("--mend", help="First remove what killed writes have left in the store.")
    ] = False,
    json: Json = False,
) -> int:
    """Look for what is wrong with store, models, adapters and machine; each problem comes with its remedy."""
    mended, findings = anyio.run(_check, mend)
    problems = sum(not one.ok for one in findings)
    if json:
        print_json({"ok": not problems, "mended": mended, "findings": findings})
        return int(problems > 0)
    out = console()
    for done in mended:
        out.print(f"mended  {one_line(done)}", soft_wrap=True)
    for one in findings:
        out.print("ok      " if one.ok else "PROBLEM ", style="green" if one.ok else "bold red", end="")
        out.print(f"{one.subject}: {one_line(one.detail)}", soft_wrap=True)
    out.print(f"{problems} problems" if problems else "all is well")
    return int(problems > 0)


async def _check(mend: bool) -> tuple[list[str], list[Finding]]:
    parts = Parts()
    try:
        mended = await parts.store().mend() if mend else []
        return mended, await check_health(parts)
    finally:
        await parts.close()


def reindex(namespace: Namespace, json: Json = False) -> None:
    """Rebuild vectors and text index with the present embedder. Interrupted, it goes on where it was."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("trajectories"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console(stderr=True), disable=json or not sys.stderr.isatty())
    with open_memory(namespace) as memory, bars:
        task = bars.add_task("", total=None)
        count = memory.reindex(progress=lambda done, total: bars.update(task, completed=done, total=total))
    if json:
        print_json({"reindexed": count})
    else:
        console().print(f"{count} trajectories indexed anew")


COMMANDS = (doctor, reindex)
