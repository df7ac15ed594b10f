"""Asking the memory: ``rtm recall`` and ``rtm ask``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rag_tuned_memory.cli.options import Json, K, Namespace, Since, Source, Success, Tool, Until, filter_of, open_memory
from rag_tuned_memory.cli.output import console, one_line, print_json, printable, when
from rag_tuned_memory.routing.base import Answer, Route

if TYPE_CHECKING:
    from rich.console import Console

    from rag_tuned_memory.recall.recollection import Recollection

_SHOWN = 160


def recall(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    namespace: Namespace,
    k: K = 10,
    token_budget: Annotated[int | None, typer.Option(help="At most so many tokens as a prompt.")] = None,
    since: Since = None,
    until: Until = None,
    tool: Tool = None,
    success: Success = None,
    source: Source = None,
    json: Json = False,
) -> None:
    """Find passages, with the reason why each was kept."""
    where = filter_of(since, until, tool, success, source)
    with open_memory(namespace) as memory:
        found = memory.recall(query, k=k, token_budget=token_budget, where=where)
    if json:
        print_json(found)
        return
    out = console()
    if not found.results:
        out.print("nothing recalled")
        return
    _evidence(found, out)
    out.print(f"{len(found.results)} passages, {found.tokens} tokens as a prompt")


def ask(
    query: Annotated[str, typer.Argument(help="The question.")],
    namespace: Namespace,
    route: Annotated[Route | None, typer.Option(help="Who answers; without it, routing decides.")] = None,
    k: K = 4,
    token_budget: Annotated[int, typer.Option(help="At most so many tokens of recalled text.")] = 320,
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 48,
    since: Since = None,
    until: Until = None,
    tool: Tool = None,
    success: Success = None,
    source: Source = None,
    json: Json = False,
) -> None:
    """Answer a question, and say by which way and from what."""
    where = filter_of(since, until, tool, success, source)
    with open_memory(namespace) as memory:
        if json:
            answered = memory.answer(
                query, route=route, k=k, token_budget=token_budget, where=where, max_new_tokens=max_new_tokens
            )
            print_json(answered)
            return
        out = console()
        for chunk in memory.stream(
            query, route=route, k=k, token_budget=token_budget, where=where, max_new_tokens=max_new_tokens
        ):
            out.print(printable(chunk.text), end="", soft_wrap=True)
            if chunk.answer is not None:
                out.print("\n")
                _explain(chunk.answer, out)


def _explain(answer: Answer, out: Console) -> None:
    adapter = f", adapter {answer.adapter}" if answer.adapter else ""
    out.print(f"route {answer.route}{adapter}: {one_line(answer.reason)}", style="dim", soft_wrap=True)
    out.print(
        f"{answer.prompt_tokens} prompt tokens, {answer.answer_tokens} answer tokens, {answer.seconds:.1f} s",
        style="dim",
    )
    if answer.evidence is not None and answer.evidence.results:
        _evidence(answer.evidence, out)


def _evidence(found: Recollection, out: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=False)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("when", no_wrap=True)
    table.add_column("passage", ratio=3)
    table.add_column("why", ratio=1)
    for one in found.results:
        who = f"{one.actor or one.tool}: " if one.actor or one.tool else ""
        cells = (f"{one.score:.2f}", when(one.time), one_line(who + one.text, _SHOWN), one_line(one.reason))
        table.add_row(*(Text(cell) for cell in cells))
    out.print(table)


COMMANDS = (recall, ask)
