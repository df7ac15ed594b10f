from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from incidents import episode
from rag_tuned_memory.adapters import AdapterRegistry
from rag_tuned_memory.distil.evaluation import Evaluation
from rag_tuned_memory.distil.lock import RunLock
from rag_tuned_memory.distil.policy import DistilPolicy
from rag_tuned_memory.embedding import HashingEmbedder
from rag_tuned_memory.errors import TrainingDiverged, TrainingStopped
from rag_tuned_memory.learning.events import DistilReport
from rag_tuned_memory.learning.worker import FIRST_PAUSE, Round, Worker, WorkerThread, policy_state
from rag_tuned_memory.recall import Recall
from rag_tuned_memory.store import EpisodeStore, open_store
from rag_tuned_memory.trajectory import Trajectory
from served_adapter import register

pytestmark = pytest.mark.anyio

POLICY = DistilPolicy(every_n=3, at_least_every=None, after_failures=2, min_trajectories=1)


class Bench:
    """A store, a registry, and runs that register an adapter without training one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: EpisodeStore = open_store(f"sqlite:///{folder / 'memory.db'}")
        self.registry = AdapterRegistry(folder / "adapters")
        self.runs = folder / "runs"
        self.started = 0
        self.error: BaseException | None = None
        self.now = datetime(2026, 5, 1, tzinfo=UTC)

    async def record(self, *numbers: int, success: bool = True) -> list[str]:
        recall = Recall(self.store, HashingEmbedder())
        made = [Trajectory.parse({"namespace": "ops", **episode(n, outcome={"success": success})}) for n in numbers]
        for one in made:
            await recall.index(one)
        return [one.id for one in made]

    async def distil(self, should_stop: Callable[[], bool]) -> DistilReport:
        with RunLock(self.runs, "ops"):
            self.started += 1
            if self.error is not None:
                raise self.error
            stored = [one async for one in self.store.scan("ops")]
            ids, last = [one.trajectory.id for one in stored], stored[-1].sequence
            manifest = register(self.registry, "ops", self.folder, ids, sequence=last)
            empty = Evaluation(metrics={}, rows=())
            return DistilReport(manifest, manifest.decision, empty, False, self.folder / "report.html", 0.0, {})

    def worker(self, distil: Callable[[Callable[[], bool]], Awaitable[DistilReport]] | None = None) -> Worker:
        return Worker(
            "ops",
            store=self.store,
            registry=self.registry,
            distil=distil or self.distil,
            policy=POLICY,
            runs=self.runs,
            interval=0.01,
            clock=lambda: self.now,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_nothing_happens_before_it_is_due(bench: Bench) -> None:
    await bench.record(1, 2)
    done = await bench.worker().round()
    assert (done.kind, bench.started) == ("waits", 0)
    assert "too few" in done.reason


async def test_a_due_run_happens_once(bench: Bench) -> None:
    worker = bench.worker()
    await bench.record(1, 2, 3)
    assert (await worker.round()).kind == "distilled"
    assert (await worker.round()).reason == "nothing new since the last run"
    await bench.record(4, 5, 6)
    assert (await worker.round()).kind == "distilled"
    assert [one.name for one in bench.registry.list("ops")] == ["ops-v1", "ops-v2"]


async def test_failures_trigger(bench: Bench) -> None:
    await bench.record(1, 2, success=False)
    assert "2 new failures" in (await bench.worker().round()).reason


async def test_a_forget_makes_a_run_due(bench: Bench) -> None:
    worker = bench.worker()
    await bench.record(1, 2, 3)
    await worker.round()
    bench.registry.taint("ops-v1", "forgotten")
    done = await worker.round()
    assert (done.kind, done.reason) == ("distilled", "the newest adapter learned from a forgotten trajectory")


async def test_an_interrupted_run_is_gone_on_with_at_once(bench: Bench) -> None:
    await bench.record(1)
    (bench.runs / "ops" / "0123").mkdir(parents=True)
    done = await bench.worker().round()
    assert (done.kind, done.reason) == ("distilled", "a run was interrupted")


async def test_another_process_at_work_is_left_to_it(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.record(1, 2, 3)
    worker = bench.worker()
    with RunLock(bench.runs, "ops"):
        done = await worker.round()
    assert (done.kind, bench.started) == ("busy", 0)
    assert "is being distilled by process" in done.reason
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert (await worker.round()).kind == "distilled"


async def test_a_failure_is_logged_and_tried_again_later_and_later(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.record(1, 2, 3)
    worker, bench.error = bench.worker(), TrainingDiverged("the loss is NaN")
    assert (await worker.round()).kind == "failed"
    assert "the loss is NaN" in caplog.text
    assert (await worker.round()).kind == "waits"
    bench.now += timedelta(seconds=FIRST_PAUSE + 1)
    assert (await worker.round()).kind == "failed"
    bench.now += timedelta(seconds=FIRST_PAUSE + 1)
    assert (await worker.round()).kind == "waits"
    bench.now += timedelta(seconds=FIRST_PAUSE)
    bench.error = None
    assert (await worker.round()).kind == "distilled"
    assert bench.started == 3


async def test_what_nobody_thought_of_does_not_end_the_worker(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.record(1, 2, 3)
    bench.error = ZeroDivisionError("ouch")
    done = await bench.worker().round()
    assert (done.kind, done.reason) == ("failed", "ouch")
    assert "ZeroDivisionError" in caplog.text


async def test_a_broken_store_does_not_end_the_worker(bench: Bench) -> None:
    (bench.folder / "memory.db").write_bytes(b"this is no database at all" * 100)
    done = await bench.worker().round()
    assert done.kind == "failed"
    assert "not a SQLite database" in done.reason


async def test_the_state_counts_what_is_new(bench: Bench) -> None:
    ids = await bench.record(1, 2)
    register(bench.registry, "ops", bench.folder, ids, sequence=2, accepted=False)
    await bench.record(3)
    await bench.record(4, success=False)
    await bench.record(2, success=False)  # written anew, so new again
    state = await policy_state(bench.store, bench.registry, "ops", now=bench.now)
    assert (state.new_trajectories, state.new_failures, state.total, state.retrain) == (3, 2, 4, False)


async def test_stopping_ends_a_run_under_way_and_keeps_it(bench: Bench) -> None:
    await bench.record(1, 2, 3)
    running = threading.Event()

    async def long(should_stop: Callable[[], bool]) -> DistilReport:
        running.set()
        stopped = threading.Event()
        while not stopped.wait(0.005) and not should_stop():
            pass
        raise TrainingStopped("stopped at step 3 of 9")

    rounds: list[Round] = []
    worker = bench.worker(long)
    worker._on_round = rounds.append
    thread = WorkerThread(worker)
    assert running.wait(10)
    thread.stop()
    assert not thread.running
    assert [one.kind for one in rounds] == ["stopped"]


async def test_a_thread_that_waits_stops_at_once(bench: Bench) -> None:
    worker = bench.worker()
    worker._interval = 3600
    thread = WorkerThread(worker)
    await anyio.sleep(0.05)
    started = time.monotonic()
    thread.stop()
    assert time.monotonic() - started < 5
