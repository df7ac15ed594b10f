"""Distilling from time to time: one worker looks after one namespace, by a policy.

A run happens in the process of the worker; another process that distils the same namespace is left to it. Whatever goes
wrong in one round is logged, and tried again later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread

from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.adapters.states import State
from rag_tuned_memory.distil.policy import DistilPolicy, Due, PolicyState, due
from rag_tuned_memory.errors import DistilBusy, RagTunedMemoryError, TrainingStopped
from rag_tuned_memory.learning.events import DistilReport
from rag_tuned_memory.learning.runs import run_folders
from rag_tuned_memory.store.base import EpisodeStore

_log = logging.getLogger("rag_tuned_memory.worker")

ShouldStop = Callable[[], bool]
Distil = Callable[[ShouldStop], Awaitable[DistilReport]]
"""Does one run of the worker's namespace; it takes the run lock itself."""

Kind = Literal["waits", "busy", "distilled", "stopped", "failed"]

FIRST_PAUSE = 60.0
LONGEST_PAUSE = 3600.0
"""Seconds to wait after a failed run; doubled with each further failure, up to the longest."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one look at a namespace came to.

    ``waits``: nothing is due. ``busy``: another process distils it. ``stopped``: asked to stop, a checkpoint is kept.
    """

    kind: Kind
    reason: str
    report: DistilReport | None = None
    error: BaseException | None = None


async def policy_state(
    store: EpisodeStore, registry: AdapterRegistry, namespace: str, *, now: datetime | None = None
) -> PolicyState:
    """What the policy needs to know of a namespace: what is new since the newest adapter, whatever its gate said."""
    newest = await anyio.to_thread.run_sync(registry.newest, namespace)
    new = failures = 0
    async for stored in store.scan(namespace, after=newest.watermark.sequence if newest else 0):
        new += 1
        failures += stored.trajectory.outcome.success is False
    retrain = False
    if newest is not None:
        retrain = await anyio.to_thread.run_sync(registry.state, newest.name) is State.TAINTED
    return PolicyState(
        new_trajectories=new,
        new_failures=failures,
        last_run_at=newest.created_at if newest else None,
        now=now or datetime.now(UTC),
        total=(await store.stats(namespace)).trajectories,
        retrain=retrain,
    )


class Worker:
    """Looks after one namespace: asks the policy every ``interval`` seconds and distils when a run is due.

    ``stop`` may be called from any thread: a run under way ends at its next training step with a checkpoint, from
    which the next run goes on, in this process or another. A run that was interrupted, and left a folder below
    ``runs``, is due at once. ``on_round`` is told of each round. ``stopping`` may be shared by workers that
    end together.
    """

    def __init__(
        self,
        namespace: str,
        *,
        store: EpisodeStore,
        registry: AdapterRegistry,
        distil: Distil,
        policy: DistilPolicy | None = None,
        runs: Path | None = None,
        interval: float = 30.0,
        on_round: Callable[[Round], None] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        stopping: threading.Event | None = None,
    ) -> None:
        self.namespace = namespace
        self.policy = policy or DistilPolicy()
        self._store, self._registry, self._distil = store, registry, distil
        self._runs, self._interval, self._on_round, self._clock = runs, interval, on_round, clock
        self._stopping = stopping or threading.Event()
        self._failures = 0
        self._not_before: datetime | None = None

    def stop(self) -> None:
        """Ask it to end; does not wait."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to end."""
        return self._stopping.is_set()

    async def run(self) -> None:
        """Rounds until ``stop``."""
        while not self.stopping:
            await self.round()
            await anyio.to_thread.run_sync(self._stopping.wait, self._interval, abandon_on_cancel=True)

    async def round(self) -> Round:
        """One look, with a run where one is due. What goes wrong is in the result, and logged."""
        try:
            done = await self._look()
        except Exception as error:
            done = self._failed(error)
        if self._on_round is not None:
            self._on_round(done)
        return done

    async def _look(self) -> Round:
        now = self._clock()
        if self._not_before is not None and now < self._not_before:
            return Round("waits", f"the last run failed; the next try is at {self._not_before:%H:%M:%S} UTC")
        verdict = await self._due(now)
        if not verdict:
            return Round("waits", verdict.reason)
        _log.info("namespace %r: distilling, %s", self.namespace, verdict.reason)
        try:
            report = await self._distil(self._stopping.is_set)
        except DistilBusy as error:
            return Round("busy", error.message)
        except TrainingStopped as error:
            return Round("stopped", error.message)
        self._failures, self._not_before = 0, None
        _log.info("namespace %r: %s. %s", self.namespace, report.manifest.name, report.decision.summary)
        return Round("distilled", verdict.reason, report)

    async def _due(self, now: datetime) -> Due:
        if await anyio.to_thread.run_sync(self._interrupted):
            return Due(True, "a run was interrupted")
        return due(self.policy, await policy_state(self._store, self._registry, self.namespace, now=now))

    def _interrupted(self) -> bool:
        return self._runs is not None and bool(run_folders(self._runs, self.namespace))

    def _failed(self, error: Exception) -> Round:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._failures)
        self._failures += 1
        self._not_before = self._clock() + timedelta(seconds=pause)
        unexpected = not isinstance(error, RagTunedMemoryError)
        _log.error(
            "namespace %r: %s (next try in %.0f s)",
            self.namespace,
            error,
            pause,
            exc_info=error if unexpected else None,
        )
        return Round("failed", str(error) or type(error).__name__, error=error)


class WorkerThread:
    """A worker in a thread with an event loop of its own, so that it never holds up its caller's."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._thread = threading.Thread(
            target=anyio.run, args=(worker.run,), name=f"rtm worker of {worker.namespace}", daemon=True
        )
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ask the worker to end and wait until it did: at most for one training step, or one stage beside training."""
        self.worker.stop()
        self._thread.join()
