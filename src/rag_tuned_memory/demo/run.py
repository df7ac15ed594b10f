"""The whole loop on one machine: ``python -m rag_tuned_memory.demo.run --folder build/demo``.

A generated history is recorded, recalled, distilled into an adapter, judged by the gate, served, and asked about in
six ways. All that it makes lies in the folder; a second run of the same shows the results of the first.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from rag_tuned_memory.demo.show import Screen
from rag_tuned_memory.demo.steps import RESULTS, SUMMARY_FILE, Demo, DemoPlan
from rag_tuned_memory.errors import RagTunedMemoryError
from rag_tuned_memory.evaluation.plot import arms_table
from rag_tuned_memory.evaluation.questions import Question
from rag_tuned_memory.evaluation.results import ArmsResult
from rag_tuned_memory.memory.wiring import load_settings
from rag_tuned_memory.routing.base import Answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="rtm demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="where everything is put")
    given = parser.parse_args(arguments)
    screen = Screen()
    try:
        run_demo(DemoPlan(folder=given.folder), screen)
    except RagTunedMemoryError as error:
        screen.console.print(f"[bold red]error[/bold red] {error}", highlight=False)
        return 1
    except KeyboardInterrupt:
        screen.say("\nStopped. The next run goes on from the last checkpoint.")
        return 130
    return 0


def run_demo(plan: DemoPlan, screen: Screen | None = None) -> dict[str, Any]:
    """Run ``plan``, or show what an earlier run of the same found; returns the summary."""
    screen = screen or Screen()
    started = time.monotonic()
    demo = Demo(plan, load_settings())
    screen.step(1, f"Models: {demo.settings.model} and {demo.settings.embedder}")
    with screen.pulling() as report:
        demo.pull(report)
    if (summary := demo.finished()) is not None:
        screen.say("Nothing changed since the last run, so here are its results. Remove the folder to run it anew.")
        _show_results(screen, plan.folder, ArmsResult.read(plan.folder / RESULTS), summary)
        return summary
    return anyio.run(_run, demo, screen, started)


async def _run(demo: Demo, screen: Screen, started: float) -> dict[str, Any]:
    await demo.open()
    try:
        await _record(demo, screen)
        screen.step(3, "Distil: facts and counts of all episodes become an adapter, which the gate judges")
        with screen.distilling() as report:
            manifest = await demo.distil(report)
        screen.gate(manifest)
        screen.say(manifest.decision.summary)
        questions = await demo.questions()
        old = [question for question in questions if question.kind != "fresh"]
        new = [question for question in questions if question.kind == "fresh"]
        screen.step(4, "Ask: the router chooses who answers")
        screen.answers([await _asked(demo, question) for question in _one_of_each(old)])
        screen.step(5, "Compare: the same questions in six ways, all on the same base model")
        with screen.asking("history") as progress:
            result = await demo.ask_arms(old, progress)
        await demo.memory.record_many(demo.plan.news)
        screen.say(f"{len(demo.plan.news)} episodes more are recorded, which the adapter never saw:")
        screen.answers([await _asked(demo, question) for question in _one_of_each(new)])
        with screen.asking("news") as progress:
            result = result.merged(await demo.ask_arms(new, progress))
        seconds = time.monotonic() - started
        summary = await anyio.to_thread.run_sync(demo.conclude, manifest, result, seconds)
    finally:
        await demo.close()
    _show_results(screen, demo.plan.folder, result, summary)
    return summary


async def _record(demo: Demo, screen: Screen) -> None:
    history = demo.plan.history
    screen.step(2, f"Record {len(history)} episodes of an operations agent, and recall")
    screen.episode(history[0])
    for receipt in await demo.memory.record_many(history):
        if receipt.error:
            raise receipt.error
    screen.recollection(await demo.memory.recall(f"What was done about {history[0].source_id}?", k=4))


async def _asked(demo: Demo, question: Question) -> tuple[str, str, str, Answer]:
    answer = await demo.memory.answer(question.text, max_new_tokens=demo.plan.arms.max_new_tokens)
    return question.kind, question.text, question.gold, answer


def _one_of_each(questions: Iterable[Question]) -> list[Question]:
    return list({question.kind: question for question in questions}.values())


def _show_results(screen: Screen, folder: Path, result: ArmsResult, summary: dict[str, Any]) -> None:
    screen.console.print(arms_table(result))
    for note in result.notes:
        screen.say(f"[dim]note: {note}[/dim]")
    files = [
        f"gate: {summary['gate']['summary']}",
        f"report   {folder / summary['report']}",
        f"results  {folder / SUMMARY_FILE}, {folder / RESULTS}/ (rows, plots)",
        f"took     {summary['seconds']:.0f} s",
    ]
    screen.ending(summary, files)


if __name__ == "__main__":
    sys.exit(main())
