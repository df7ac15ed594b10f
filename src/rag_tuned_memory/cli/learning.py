"""Learning: ``rtm distil`` and ``rtm worker``."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer
from pydantic import ValidationError

from rag_tuned_memory.cli.options import Json, Namespace, open_memory, read_json, read_text
from rag_tuned_memory.cli.output import console, one_line, print_json
from rag_tuned_memory.distil.policy import DistilPolicy
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.errors import InvalidRecipe, TrainingStopped
from rag_tuned_memory.trajectory import describe, validate_namespace

if TYPE_CHECKING:
    from rag_tuned_memory.learning.events import DistilReport, Event
    from rag_tuned_memory.learning.worker import Round

INTERRUPTED = 130


def distil(
    namespace: Namespace,
    recipe: Annotated[Path | None, typer.Option(help="A recipe as JSON; what it leaves out is as usual.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Train on at most so many tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another draw of phrasings and order.")] = None,
    json: Json = False,
) -> int:
    """Make an adapter of what is stored; it serves at once if the gate accepts it. Ctrl-C keeps a checkpoint."""
    wanted = _recipe(recipe, {"max_tokens": max_tokens, "seed": seed})
    with open_memory(namespace) as memory, _stop_on_signals() as stop, _Bars(quiet=json) as bars:
        try:
            report = memory.distil(wanted, on_event=bars.show, should_stop=stop.is_set)
        except TrainingStopped as stopped:
            if not stop.is_set():
                raise
            print(f"stopped: {one_line(stopped.message)}. Go on with the same command.", file=sys.stderr)
            return INTERRUPTED
    if json:
        print_json(_summary(report))
    else:
        _tell(report)
    return 0


def worker(
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", envvar="RTM_NAMESPACE", help="Whose memory; may be repeated."),
    ] = None,
    all_namespaces: Annotated[bool, typer.Option("--all", help="Every namespace of the store.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Look once at each, and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 30.0,
    every_n: Annotated[
        int | None, typer.Option(help="Distil after so many new trajectories; 0: never for this.")
    ] = None,
    at_least_every: Annotated[
        float | None, typer.Option(help="Distil after so many hours with anything new; 0: never for this.")
    ] = None,
    after_failures: Annotated[
        int | None, typer.Option(help="Distil after so many new failures; 0: never for this.")
    ] = None,
    min_trajectories: Annotated[int | None, typer.Option(help="Not while there are fewer in all.")] = None,
    json: Json = False,
) -> int:
    """Distil in the background, whenever the policy says so. Ctrl-C ends it, with a checkpoint."""
    if bool(namespace) == all_namespaces:
        raise typer.BadParameter("say whose memory: either --namespace (-n), or --all")
    names = [validate_namespace(name) for name in namespace or ()]
    policy = _policy(every_n, at_least_every, after_failures, min_trajectories)
    with _stop_on_signals() as stop:
        return anyio.run(_work, names, policy, interval, once, json, stop)


async def _work(
    names: list[str], policy: DistilPolicy, interval: float, once: bool, json: bool, stop: threading.Event
) -> int:
    from rag_tuned_memory.learning.worker import Worker
    from rag_tuned_memory.memory import AsyncMemory
    from rag_tuned_memory.memory.wiring import Parts

    parts = Parts()
    workers: dict[str, Worker] = {}
    said: dict[str, str] = {}
    try:
        store, backend, embedder = parts.store(), parts.backend(), parts.embedder()
        while True:
            failed = False
            for name in names or await store.namespaces():
                if name not in workers:
                    memory = AsyncMemory(name, settings=parts.settings, store=store, embedder=embedder, backend=backend)
                    workers[name] = await memory.worker(policy, stopping=stop)
                done = await workers[name].round()
                failed = failed or done.kind == "failed"
                if once or said.get(name) != done.reason:  # not the same line every half minute
                    _tell_round(name, done, json)
                said[name] = done.reason
                if stop.is_set():
                    return 0 if once else INTERRUPTED
            if once:
                return int(failed)
            if await anyio.to_thread.run_sync(stop.wait, interval):
                return INTERRUPTED
    finally:
        await parts.close()


def _tell_round(name: str, done: Round, json: bool) -> None:
    if json:
        report = _summary(done.report) if done.report else None
        print_json({"namespace": name, "kind": done.kind, "reason": done.reason, "report": report})
        sys.stdout.flush()
        return
    console().print(f"{name}: {done.kind}: {one_line(done.reason)}", soft_wrap=True)
    if done.report:
        _tell(done.report)


def _recipe(path: Path | None, changes: dict[str, Any]) -> Recipe:
    fields = read_json(read_text(path), str(path)) if path else {}
    if not isinstance(fields, dict):
        raise InvalidRecipe("a recipe is a JSON object", place=str(path))
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        return Recipe.model_validate({**fields, **given})
    except ValidationError as error:
        raise InvalidRecipe(describe(error), place=str(path) if path else "recipe") from error


def _policy(
    every_n: int | None, hours: float | None, after_failures: int | None, min_trajectories: int | None
) -> DistilPolicy:
    given = {
        "every_n": every_n,
        "at_least_every": None if hours is None else timedelta(hours=hours),
        "after_failures": after_failures,
    }
    fields: dict[str, Any] = {name: value or None for name, value in given.items() if value is not None}
    if min_trajectories is not None:
        fields["min_trajectories"] = min_trajectories
    return DistilPolicy(**fields)


def _summary(report: DistilReport) -> dict[str, Any]:
    manifest = report.manifest
    return {
        "adapter": manifest.name,
        "accepted": report.decision.accepted,
        "promoted": report.promoted,
        "reasons": [verdict.sentence for verdict in report.decision.reasons],
        "metrics": manifest.metrics,
        "train": manifest.train.model_dump(mode="json"),
        "composition": report.composition,
        "seconds": report.seconds,
        "report": str(report.report),
    }


def _tell(report: DistilReport) -> None:
    out = console()
    serving = "serves now" if report.promoted else "does not serve"
    out.print(f"{report.manifest.name} {serving}: {report.decision.summary}", soft_wrap=True)
    for verdict in report.decision.reasons:
        out.print(f"  {'passed' if verdict.passed else 'MISSED'}  {verdict.sentence}", soft_wrap=True)
    train = report.manifest.train
    out.print(f"{train.tokens:,} tokens trained, {train.tokens_per_second:.0f}/s; {report.seconds:.0f} s in all")
    out.print(f"report: {report.report}", soft_wrap=True)


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets; the second Ctrl-C ends the program as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield stop
        return

    def caught(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("\nstopping at the next step …", file=sys.stderr)

    before = {number: signal.signal(number, caught) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Bars:
    """A progress bar for each stage of a run; plain lines where stderr is no terminal."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._plain = not quiet and not sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.description:<12}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console(stderr=True),
            disable=quiet or self._plain,
        )
        self._tasks: dict[str, Any] = {}
        self._told = 0.0

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Called from the run, from any of its threads."""
        detail = one_line(event.detail)
        if (step := event.training) is not None:
            detail = f"loss {step.loss:.3f}, {step.tokens_per_second:.0f} tokens/s, {_minutes(step.seconds_left)} left"
        new = event.stage not in self._tasks
        if new:
            self._tasks[event.stage] = self._progress.add_task(event.stage, total=None, detail="")
        total = event.total or None
        self._progress.update(self._tasks[event.stage], completed=event.done, total=total, detail=detail)
        ended = bool(total) and event.done == total
        if self._plain and (new or ended or time.monotonic() - self._told > 10):
            self._told = time.monotonic()
            print(f"{event.stage} {event.done}/{total or '?'} {detail}".rstrip(), file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


COMMANDS = (distil, worker)
