"""A distillation run of a memory: what it learned is compared with the store before its adapter may serve."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial

import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.errors import AdapterNotServable, TrainingStopped
from rag_tuned_memory.learning.events import DistilReport, Event, OnEvent
from rag_tuned_memory.memory.wiring import Parts

RollOut = Callable[[str, str], Awaitable[object]]
"""Lets an adapter answer: ``LiveAdapters.roll_out``."""


def in_present_loop(roll_out: RollOut) -> RollOut:
    """``roll_out`` in the event loop that runs now, wherever it is called: a backend's connections belong to one."""
    token = anyio.lowlevel.current_token()

    async def call(name: str, reason: str) -> object:
        run = partial(anyio.from_thread.run, roll_out, name, reason, token=token)  # type: ignore[arg-type]
        return await anyio.to_thread.run_sync(run)

    return call


async def distil(
    parts: Parts,
    namespace: str,
    recipe: Recipe | None,
    on_event: OnEvent | None,
    should_stop: Callable[[], bool],
    roll_out: RollOut,
) -> DistilReport:
    """Run a distillation and promote what it made, unless an episode that it learned was forgotten meanwhile.

    Whoever forgets deletes from the store before looking for adapters to taint; here the adapter is registered before
    looking into the store. So one of the two always sees the other.
    """
    from rag_tuned_memory.learning.pipeline import run_distillation

    recipe = recipe or Recipe()
    async with parts.teacher(namespace) as teacher:
        report = await run_distillation(
            namespace=namespace,
            recall=await anyio.to_thread.run_sync(parts.recall),
            backend=await anyio.to_thread.run_sync(parts.workbench),
            base=await anyio.to_thread.run_sync(parts.base),
            registry=parts.registry,
            runs=parts.settings.runs_dir,
            recipe=recipe,
            teacher=teacher if recipe.teacher_questions else None,
            serve_for=parts.settings.serve_for,
            max_lora_rank=parts.settings.max_lora_rank,
            on_event=_stoppable(on_event, should_stop),
            should_stop=should_stop,
            promote=False,
        )
    if await _taint_if_forgotten(parts, namespace, report) or not report.decision.accepted:
        return report
    try:
        await roll_out(report.manifest.name, "accepted by the gate")
    except AdapterNotServable:  # forgotten just now, by somebody who found the adapter registered
        return report
    return dataclasses.replace(report, promoted=True)


async def _taint_if_forgotten(parts: Parts, namespace: str, report: DistilReport) -> bool:
    learned = [one.trajectory_id for one in report.manifest.learned]
    there = await parts.store().headings(namespace, learned)
    gone = [one for one in learned if one not in there]
    if not gone:
        return False
    reason = f"{len(gone)} of the trajectories that it learned were forgotten while it was made"
    await anyio.to_thread.run_sync(parts.registry.taint, report.manifest.name, reason)
    return True


def _stoppable(on_event: OnEvent | None, should_stop: Callable[[], bool]) -> OnEvent:
    """Let a stop take effect in every stage. Training looks by itself, and saves a checkpoint first."""

    def tell(event: Event) -> None:
        if on_event is not None:
            on_event(event)
        if event.stage not in ("train", "gate") and should_stop():
            raise TrainingStopped(
                f"stopped in the stage {event.stage!r}", remedy="Distil again: what was trained so far is kept."
            )

    return tell
