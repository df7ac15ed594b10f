"""Recording: one episode, many, and feedback on one."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
from filelock import FileLock, Timeout

from rag_tuned_memory.distil.naming import namespace_slug
from rag_tuned_memory.errors import InvalidInput, RagTunedMemoryError, StoreBusy, StoreError, TrajectoryNotFound
from rag_tuned_memory.memory.feedback import given_feedback, with_feedback
from rag_tuned_memory.memory.intake import Given, take_in
from rag_tuned_memory.memory.merging import merged
from rag_tuned_memory.memory.receipts import RecordReceipt
from rag_tuned_memory.memory.wiring import Parts
from rag_tuned_memory.recall.engine import Recall
from rag_tuned_memory.trajectory import Step, Trajectory

_BATCH = 32
_PATIENCE = 30.0

Progress = Callable[[RecordReceipt], None] | None
Taken = Trajectory | RagTunedMemoryError


async def record(parts: Parts, namespace: str, given: Given) -> RecordReceipt:
    """See ``AsyncMemory.record``."""
    trajectory = await anyio.to_thread.run_sync(lambda: _take_in(parts, namespace, given))
    engine = await anyio.to_thread.run_sync(parts.recall)
    if trajectory.id in await _replaced(engine, [trajectory]):
        return await _replace(parts, engine, trajectory)
    return RecordReceipt(trajectory.id, await engine.index(trajectory))


async def extend(parts: Parts, namespace: str, given: Given) -> RecordReceipt:
    """See ``AsyncMemory.extend``."""
    new = await anyio.to_thread.run_sync(lambda: _take_in(parts, namespace, given))
    engine = await anyio.to_thread.run_sync(parts.recall)
    async with _updating(parts, namespace):
        try:
            stored = (await engine.store.get(namespace, new.id)).trajectory
        except TrajectoryNotFound:
            return RecordReceipt(new.id, await engine.index(new))
        feedback = given_feedback(stored)
        plain = stored.model_copy(update={"steps": tuple(step for step in stored.steps if step not in feedback)})
        return RecordReceipt(new.id, await engine.index(with_feedback(merged(plain, new), feedback)))


async def record_many(
    parts: Parts, namespace: str, trajectories: Iterable[Given], progress: Progress
) -> list[RecordReceipt]:
    """See ``AsyncMemory.record_many``."""
    engine = await anyio.to_thread.run_sync(parts.recall)
    receipts: list[RecordReceipt] = []

    def report(receipt: RecordReceipt) -> None:
        receipts.append(receipt)
        if progress is not None:
            progress(receipt)

    source = iter(trajectories)
    while True:
        taken, failure = await anyio.to_thread.run_sync(lambda: _take_batch(parts, namespace, source))
        await _record_batch(parts, engine, taken, report)
        if failure is not None:
            raise failure
        if len(taken) < _BATCH:
            return receipts


async def add_feedback(parts: Parts, namespace: str, trajectory_id: str, step: Step) -> RecordReceipt:
    """See ``AsyncMemory.feedback``. Raises TrajectoryNotFound."""
    engine = await anyio.to_thread.run_sync(parts.recall)
    async with _updating(parts, namespace):
        stored = await engine.store.get(namespace, trajectory_id)
        changed = with_feedback(stored.trajectory, [step])
        return RecordReceipt(trajectory_id, await engine.index(changed))


def _take_in(parts: Parts, namespace: str, given: Given) -> Trajectory:
    return take_in(namespace, given, max_step_bytes=parts.settings.max_step_bytes)


def _take_batch(parts: Parts, namespace: str, source: Iterator[Given]) -> tuple[list[Taken], Exception | None]:
    """The next trajectories made ready, or why one cannot be taken; and what the source raised, if it did."""
    taken: list[Taken] = []
    try:
        for given in itertools.islice(source, _BATCH):
            try:
                taken.append(_take_in(parts, namespace, given))
            except InvalidInput as error:
                taken.append(error)
    except Exception as error:
        return taken, error
    return taken, None


async def _record_batch(
    parts: Parts, engine: Recall, taken: list[Taken], report: Callable[[RecordReceipt], None]
) -> None:
    """Record what was taken and report on all in their order; an episode that replaces another goes by itself."""
    replaced = await _replaced(engine, [one for one in taken if isinstance(one, Trajectory)])
    fresh: list[Trajectory] = []

    async def flush() -> None:
        await engine.index_many(
            list(fresh), progress=lambda one: report(RecordReceipt(one.trajectory_id, one.changed, one.error))
        )
        replaced.update(one.id for one in fresh)  # a second one under the same id, in this batch
        fresh.clear()

    for one in taken:
        if isinstance(one, Trajectory) and one.id not in replaced and all(one.id != other.id for other in fresh):
            fresh.append(one)
            continue
        await flush()
        if isinstance(one, Trajectory):
            report(await _replace_or_refuse(parts, engine, one))
        else:
            report(RecordReceipt("", changed=False, error=one))
    await flush()


async def _replaced(engine: Recall, trajectories: list[Trajectory]) -> set[str]:
    """Ids under which other content is stored."""
    if not trajectories:
        return set()
    found = await engine.store.headings(trajectories[0].namespace, [one.id for one in trajectories])
    return {one.id for one in trajectories if one.id in found and found[one.id].content_hash != one.content_hash}


async def _replace_or_refuse(parts: Parts, engine: Recall, trajectory: Trajectory) -> RecordReceipt:
    try:
        return await _replace(parts, engine, trajectory)
    except InvalidInput as error:
        return RecordReceipt(trajectory.id, changed=False, error=error)


async def _replace(parts: Parts, engine: Recall, trajectory: Trajectory) -> RecordReceipt:
    """Put ``trajectory`` in the place of what is stored under its id, with the feedback that was given on that."""
    async with _updating(parts, trajectory.namespace):
        found = await engine.store.headings(trajectory.namespace, [trajectory.id])
        if trajectory.id in found:
            stored = await engine.store.get(trajectory.namespace, trajectory.id)
            trajectory = with_feedback(trajectory, given_feedback(stored.trajectory))
        return RecordReceipt(trajectory.id, await engine.index(trajectory))


@asynccontextmanager
async def _updating(parts: Parts, namespace: str) -> AsyncIterator[None]:
    """One at a time, across processes, reads an episode of a namespace and writes it back changed."""
    folder = parts.settings.home / "locks"
    lock = FileLock(folder / f"{namespace_slug(namespace)}.lock", thread_local=False)

    def acquire() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            raise StoreBusy(
                "another process changes an episode of this namespace", place=lock.lock_file, remedy="Try again."
            ) from None
        except OSError as error:
            raise StoreError(
                f"the lock cannot be written: {error.strerror or error}",
                place=lock.lock_file,
                remedy="Make the folder writable, or point RTM_HOME elsewhere.",
            ) from error

    async with parts.updating:  # tasks wait here, rather than in threads that the one at work needs
        await anyio.to_thread.run_sync(acquire)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lock.release)
