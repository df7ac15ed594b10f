"""Single episodes: ``rtm record``, ``rtm feedback``, ``rtm forget``, ``rtm stats``."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from rag_tuned_memory.cli.options import (
    Json,
    Namespace,
    Since,
    Source,
    Success,
    Tool,
    Until,
    filter_of,
    open_memory,
    read_json,
    read_text,
)
from rag_tuned_memory.cli.output import console, print_json, when
from rag_tuned_memory.errors import InvalidInput


def record(
    namespace: Namespace,
    file: Annotated[Path, typer.Argument(help="One trajectory as JSON; - reads stdin.")] = Path("-"),
    json: Json = False,
) -> None:
    """Record one trajectory; it can be recalled when this returns."""
    if str(file) == "-":
        try:
            text, place = sys.stdin.buffer.read().decode(), "stdin"
        except UnicodeDecodeError as error:
            raise InvalidInput(f"not valid UTF-8 at byte {error.start}", place="stdin") from error
    else:
        text, place = read_text(file), str(file)
    with open_memory(namespace) as memory:
        receipt = memory.record(read_json(text, place))
    if json:
        print_json({"id": receipt.id, "changed": receipt.changed})
    else:
        console().print(f"{receipt.id} {'recorded' if receipt.changed else 'was there already'}")


def feedback(
    trajectory_id: Annotated[str, typer.Argument(help="Which episode.")],
    text: Annotated[str, typer.Argument(help="What you think of it.")],
    namespace: Namespace,
    success: Annotated[bool | None, typer.Option("--success/--failure", help="How it ended after all.")] = None,
    score: Annotated[float | None, typer.Option(help="A score, on the source's own scale.")] = None,
    json: Json = False,
) -> None:
    """Say what you think of an episode: it becomes part of it."""
    with open_memory(namespace) as memory:
        receipt = memory.feedback(trajectory_id, text, success=success, score=score)
    if json:
        print_json({"id": receipt.id, "changed": receipt.changed})
    else:
        console().print(f"{receipt.id}: feedback recorded")


def forget(
    namespace: Namespace,
    trajectory_ids: Annotated[
        list[str] | None, typer.Argument(help="Which episodes; or choose by the options.")
    ] = None,
    since: Since = None,
    until: Until = None,
    tool: Tool = None,
    success: Success = None,
    source: Source = None,
    everything: Annotated[bool, typer.Option("--all", help="All episodes, and the namespace itself.")] = False,
    json: Json = False,
) -> None:
    """Remove episodes for good, and every adapter that learned one of them from service."""
    where = filter_of(since, until, tool, success, source)
    if everything and (trajectory_ids or where):
        raise InvalidInput("--all leaves nothing to choose", remedy="Give --all alone, or what to forget.")
    with open_memory(namespace) as memory:
        receipt = memory.forget_all() if everything else memory.forget(trajectory_ids or None, where=where)
    if json:
        print_json(receipt)
        return
    out = console()
    out.print(f"{len(receipt.removed)} trajectories removed")
    for one in receipt.missing:
        out.print(f"not there: {one}")
    for name in receipt.tainted:
        out.print(f"tainted, never serves again: {name}")
    for folder in receipt.deleted:
        out.print(f"deleted: {folder}", soft_wrap=True)
    if receipt.remaining:
        out.print("\nStill to do:")
        for one in receipt.remaining:
            out.print(f"- {one}", soft_wrap=True)


def stats(namespace: Namespace, json: Json = False) -> None:
    """What the memory holds, and how far its adapters have come."""
    with open_memory(namespace) as memory:
        found = memory.stats()
    if json:
        print_json(found)
        return
    from rich.table import Table

    store = found.store
    undecided = store.trajectories - store.successes - store.failures
    table = Table(title=f"Memory of {found.namespace!r}", show_header=False)
    table.add_row("trajectories", f"{store.trajectories} ({store.passages} passages)")
    table.add_row("outcomes", f"{store.successes} successes, {store.failures} failures, {undecided} unknown")
    table.add_row("from", f"{when(store.first_time)} to {when(store.last_time)}")
    table.add_row("last recorded", when(store.recorded_at))
    table.add_row("size", f"{(store.bytes or 0) / 1e6:.1f} MB")
    table.add_row("sources", _counts(store.sources))
    table.add_row("tools", _counts(store.tools))
    table.add_row("adapters", _counts(Counter(found.adapters.values())))
    table.add_row("serving", found.serving or "none: retrieval answers")
    table.add_row("not yet learned", str(found.newer_episodes))
    console().print(table)


def _counts(counts: dict[str, int]) -> str:
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{name} {count}" for name, count in most[:12]) or "none"


COMMANDS = (record, feedback, forget, stats)
