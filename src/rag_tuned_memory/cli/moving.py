"""Histories in and out: ``rtm import``, ``rtm export``, ``rtm pull``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import typer

from rag_tuned_memory.cli.options import Json, Namespace, Since, Source, Success, Tool, Until, filter_of, open_memory
from rag_tuned_memory.cli.output import console, one_line, print_json
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.formats import IMPORTERS, detect_format, dump_jsonl, write_jsonl
from rag_tuned_memory.memory import RecordReceipt
from rag_tuned_memory.memory.wiring import load_settings
from rag_tuned_memory.store import open_store
from rag_tuned_memory.store.migrating import Migrated, OnMoved
from rag_tuned_memory.store.migrating import migrate as copy_namespace

Format = Literal["auto", "openai", "tau-bench", "locomo", "jsonl"]
_IMPORTERS = {"openai": "openai-chat", "tau-bench": "openai-chat", "locomo": "locomo", "jsonl": "jsonl"}


def import_(
    file: Annotated[Path, typer.Argument(help="A file of recorded histories.")],
    namespace: Namespace,
    format: Annotated[Format, typer.Option(help="Its form; auto looks at the first record.")] = "auto",
    on_error: Annotated[Literal["stop", "skip"], typer.Option(help="What a bad record does.")] = "stop",
    json: Json = False,
) -> None:
    """Record the histories in a file; doing so twice records them once."""
    if not file.is_file():
        raise InvalidInput("there is no such file", place=str(file))
    skipped: list[InvalidInput] = []
    counts = {"recorded": 0, "unchanged": 0}
    with open_memory(namespace) as memory, _Counter(json) as count:
        importer = IMPORTERS[detect_format(file) if format == "auto" else _IMPORTERS[format]]

        def told(receipt: RecordReceipt) -> None:
            if isinstance(receipt.error, InvalidInput):
                if on_error == "stop":
                    raise receipt.error
                skipped.append(receipt.error)
            else:
                counts["recorded" if receipt.changed else "unchanged"] += 1
            count(counts["recorded"] + counts["unchanged"], len(skipped))

        trajectories = importer(
            file,
            memory.namespace,
            on_error=on_error,
            on_skip=skipped.append,
            max_step_bytes=memory.settings.max_step_bytes,
        )
        try:
            memory.record_many(trajectories, progress=told)
        except InvalidInput as error:
            done = counts["recorded"] + counts["unchanged"]
            before = f"{done} trajectories before it are recorded; --on-error skip leaves it out"
            error.remedy = f"{error.remedy.rstrip('.')}. {before}." if error.remedy else f"{before}."
            raise
    if json:
        print_json({**counts, "skipped": [{"place": one.place, "error": one.message} for one in skipped]})
        return
    for one in skipped:
        print(f"skipped: {one_line(str(one))}", file=sys.stderr)
    console().print(
        f"{counts['recorded']} trajectories recorded, {counts['unchanged']} were there already, {len(skipped)} skipped"
    )


def export(
    namespace: Namespace,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here instead of to stdout.")] = None,
    since: Since = None,
    until: Until = None,
    tool: Tool = None,
    success: Success = None,
    source: Source = None,
    json: Json = False,
) -> None:
    """Write episodes as JSON lines, which `rtm import` takes up again."""
    where = filter_of(since, until, tool, success, source)
    with open_memory(namespace) as memory:
        episodes = memory.export(where=where)
        if output is None:
            dump_jsonl(episodes, sys.stdout)
            return
        count = write_jsonl(output, episodes)
    if json:
        print_json({"exported": count, "path": str(output)})
    else:
        console().print(f"{count} trajectories written to {output}")


def pull(
    model: Annotated[str, typer.Argument(help="A known model's name, or owner/name of the Hugging Face hub.")],
    json: Json = False,
) -> None:
    """Bring a model's weights onto this machine, once."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from rag_tuned_memory.models import pull as pull_model
    from rag_tuned_memory.models import read_info

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), disable=json or not sys.stderr.isatty()) as bars:
        task = bars.add_task(model, total=None)

        def show(stage: str, done: int, total: int | None) -> None:
            bars.update(task, description=f"{model}: {stage}", completed=done, total=total)

        folder = pull_model(model, cache=load_settings().cache, on_progress=show)
    info = read_info(folder)
    if json:
        print_json({"model": info.name, "revision": info.revision, "source": info.source, "path": str(folder)})
    else:
        console().print(f"{info.name} lies in {folder} (from {info.source})", soft_wrap=True)


def migrate(
    source: Annotated[str, typer.Argument(help="URL of the store to read, for example sqlite:///memory.db.")],
    target: Annotated[str, typer.Argument(help="URL of the store to write, for example weaviate://localhost:8080.")],
    namespace: Annotated[
        list[str] | None, typer.Option("--namespace", "-n", help="Only this one; may be given again. All by default.")
    ] = None,
    json: Json = False,
) -> None:
    """Copy episodes with their vectors into another store, and compare both. Interrupted, run it again."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), disable=json or not sys.stderr.isatty()) as bars:
        task = bars.add_task("", total=None)

        def show(name: str, done: int, total: int) -> None:
            bars.update(task, description=one_line(name), completed=done, total=total)

        moved = anyio.run(_migrate, source, target, namespace, show)
    if json:
        print_json({"namespaces": moved})
        return
    for one in moved:
        console().print(
            f"{one.namespace}: {one.moved} trajectories moved, {one.unchanged} were there already, all equal"
        )


async def _migrate(source: str, target: str, namespaces: list[str] | None, show: OnMoved) -> list[Migrated]:
    key = load_settings().weaviate_api_key
    one, other = open_store(source, api_key=key), open_store(target, api_key=key)
    try:
        wanted = namespaces or await one.namespaces()
        return [await copy_namespace(one, other, name, progress=show) for name in wanted]
    finally:
        await one.close()
        await other.close()


class _Counter:
    """A line that counts, on a terminal; called with how many are done and skipped."""

    def __init__(self, quiet: bool) -> None:
        self._status: Any = None if quiet or not sys.stderr.isatty() else console(stderr=True).status("reading …")

    def __enter__(self) -> _Counter:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, done: int, skipped: int) -> None:
        if self._status is not None:
            self._status.update(f"{done} trajectories, {skipped} skipped")


COMMANDS = (import_, export, migrate, pull)
