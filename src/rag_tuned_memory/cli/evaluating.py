"""``rtm eval``: what recall finds, and what each way of answering is worth."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
import anyio.to_thread
import typer

from rag_tuned_memory.cli.options import Json, Namespace
from rag_tuned_memory.cli.output import console, print_json
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.memory.wiring import Parts
from rag_tuned_memory.trajectory import validate_namespace

if TYPE_CHECKING:
    from rag_tuned_memory.evaluation.results import ArmsResult

app = typer.Typer(no_args_is_help=True, help="Measure recall and answers.", rich_markup_mode=None)


@app.command()
def recall(
    file: Annotated[Path, typer.Argument(help="Conversations with questions and their evidence.")],
    format: Annotated[Literal["locomo"], typer.Option(help="The file's form.")] = "locomo",
    k: Annotated[int, typer.Option("-k", help="How many recalled turns count.")] = 10,
    json: Json = False,
) -> None:
    """Evidence recall at k: the mean share of gold turns that are among the first k recalled ones."""
    if not file.is_file():
        raise InvalidInput("there is no such file", place=str(file))
    found = anyio.run(_recall, file, format, k, json)
    if json:
        print_json({name: found[name] for name in ("recall_at_k", "k", "questions", "by_category")})
        return
    from rich.table import Table

    table = Table(title=f"Evidence recall@{k}")
    for column in ("category", "questions", f"recall@{k}"):
        table.add_column(column, justify="right")
    for name, one in found["by_category"].items():
        table.add_row(name, str(one["questions"]), f"{one['recall_at_k']:.3f}")
    table.add_row("all", str(found["questions"]), f"{found['recall_at_k']:.3f}")
    console().print(table)


async def _recall(file: Path, format: str, k: int, json: bool) -> dict[str, Any]:
    from rag_tuned_memory.evaluation.recall import evaluate_recall
    from rag_tuned_memory.store import open_store

    parts = Parts()
    with tempfile.TemporaryDirectory(prefix="rtm-eval-") as folder:
        return await evaluate_recall(
            file,
            embedder=await anyio.to_thread.run_sync(parts.embedder),
            store_factory=lambda: open_store(f"sqlite:///{folder}/eval.db"),
            format=format,
            k=k,
            progress=_counter(quiet=json),
        )


@app.command()
def arms(
    namespace: Namespace,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A folder for rows, figures and plot.")] = None,
    per_kind: Annotated[int, typer.Option(min=1, help="At most so many questions of each kind.")] = 40,
    seed: Annotated[int, typer.Option(help="Which questions are drawn.")] = 0,
    json: Json = False,
) -> None:
    """The same questions through none, full context, retrieval, tuned, both and routed, on the same base model."""
    result = anyio.run(_arms, validate_namespace(namespace), per_kind, seed, json)
    written = []
    if output is not None:
        from rag_tuned_memory.evaluation.plot import plot_arms

        result.write(output)
        written = [*sorted(output.glob("*.json*")), *plot_arms(result, output)]
    if json:
        print_json(result.summary())
        return
    from rag_tuned_memory.evaluation.plot import arms_table

    out = console()
    out.print(arms_table(result))
    for note in result.notes:
        out.print(note, soft_wrap=True)
    for path in written:
        out.print(f"written: {path}", soft_wrap=True)


async def _arms(namespace: str, per_kind: int, seed: int, json: bool) -> ArmsResult:
    from rag_tuned_memory.distil.gather import facts_of
    from rag_tuned_memory.distil.recipe import Recipe
    from rag_tuned_memory.evaluation.arms import evaluate_arms
    from rag_tuned_memory.evaluation.questions import KINDS, questions_for

    parts = Parts()
    try:
        store = await anyio.to_thread.run_sync(parts.store)
        live = await anyio.to_thread.run_sync(parts.live)
        manifest = await live.current(namespace)
        stored = [one async for one in store.scan(namespace)]
        learned = {one.trajectory_id for one in manifest.learned} if manifest else {one.trajectory.id for one in stored}
        old = [one for one in stored if one.trajectory.id in learned]
        selection = facts_of(old, manifest.recipe if manifest else Recipe(), namespace)
        fresh = [one for one in stored if one.trajectory.id not in learned]
        return await evaluate_arms(
            namespace,
            questions_for(selection, fresh=fresh, seed=seed, limits=dict.fromkeys(KINDS, per_kind)),
            recall=await anyio.to_thread.run_sync(parts.recall),
            backend=await anyio.to_thread.run_sync(parts.backend),
            live=live,
            seed=seed,
            on_progress=_counter(quiet=json),
        )
    finally:
        await parts.close()


def _counter(*, quiet: bool) -> Any:
    """Says on a terminal how far each part has come."""

    def show(what: str, done: int, total: int) -> None:
        if not quiet and sys.stderr.isatty():
            print(f"\r{what} {done}/{total} ", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
