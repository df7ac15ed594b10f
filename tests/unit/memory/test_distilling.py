"""What a memory adds to a run: promotion, and the last look at what was forgotten meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from incidents import episode
from rag_tuned_memory.adapters import State
from rag_tuned_memory.distil.evaluation import Evaluation
from rag_tuned_memory.distil.policy import DistilPolicy
from rag_tuned_memory.errors import TrainingStopped
from rag_tuned_memory.learning.events import DistilReport, Event
from rag_tuned_memory.learning.worker import Round
from rag_tuned_memory.memory import Memory
from rag_tuned_memory.settings import Settings
from served_adapter import register


@pytest.fixture
def settings(settings: Settings, tiny_model: Path) -> Settings:
    return settings.model_copy(update={"model": str(tiny_model)})


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Replaces the run by one that registers an adapter; ``meanwhile`` is called before that, with the episodes."""
    options: dict[str, Any] = {"accepted": True, "meanwhile": None}

    async def run(**given: Any) -> DistilReport:
        assert given["promote"] is False
        stored = [one async for one in given["recall"].store.scan(given["namespace"])]
        ids = [one.trajectory.id for one in stored]
        given["on_event"](Event("select", 1, 1))
        if options["meanwhile"]:
            await options["meanwhile"](given["recall"].store, ids)
        given["on_event"](Event("train", 1, 1))
        manifest = register(
            given["registry"],
            given["namespace"],
            tmp_path,
            ids,
            sequence=stored[-1].sequence,
            accepted=options["accepted"],
        )
        return DistilReport(manifest, manifest.decision, Evaluation(metrics={}, rows=()), False, tmp_path, 0.0, {})

    monkeypatch.setattr("rag_tuned_memory.learning.pipeline.run_distillation", run)
    return options


def test_what_the_gate_accepts_serves(memory: Memory, during: dict[str, Any]) -> None:
    memory.record(episode())
    told: list[Event] = []
    report = memory.distil(on_event=told.append)
    assert report.promoted
    stats = memory.stats()
    assert (stats.serving, stats.adapters) == ("operations-v1", {"operations-v1": "serving"})
    assert stats.newer_episodes == 0
    memory.record(episode(2))
    assert memory.stats().newer_episodes == 1
    assert [one.stage for one in told] == ["select", "train"]


def test_what_the_gate_rejects_does_not_serve(memory: Memory, during: dict[str, Any]) -> None:
    during["accepted"] = False
    memory.record(episode())
    assert not memory.distil().promoted
    assert memory.stats().adapters == {"operations-v1": "rejected"}


def test_what_learned_from_a_forgotten_episode_never_serves(memory: Memory, during: dict[str, Any]) -> None:
    async def forget(store: Any, ids: list[str]) -> None:
        await store.delete("operations", ids[:1])

    memory.record_many([episode(1), episode(2)])
    during["meanwhile"] = forget
    assert not memory.distil().promoted
    assert memory.registry.state("operations-v1") is State.TAINTED
    assert "forgotten while it was made" in memory.registry.history("operations-v1")[-1].reason


@pytest.mark.parametrize(("stage", "stops"), [("select", True), ("train", False)])
def test_a_stop_takes_effect_in_every_stage_but_training_which_looks_itself(
    memory: Memory, during: dict[str, Any], stage: str, stops: bool
) -> None:
    reached: list[str] = []

    def should_stop() -> bool:
        return reached[-1] == stage

    memory.record(episode())
    if stops:
        with pytest.raises(TrainingStopped, match="stopped in the stage 'select'"):
            memory.distil(on_event=lambda event: reached.append(event.stage), should_stop=should_stop)
    else:
        memory.distil(on_event=lambda event: reached.append(event.stage), should_stop=should_stop)


def wait_for(condition: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_worker_distils_in_the_background_and_the_new_adapter_answers(memory: Memory, during: dict[str, Any]) -> None:
    rounds: list[Round] = []
    policy = DistilPolicy(every_n=2, at_least_every=None, after_failures=None, min_trajectories=1)
    handle = memory.start_worker(policy, interval=0.02, on_round=rounds.append)
    memory.record(episode(1))
    wait_for(lambda: len(rounds) > 2)
    assert memory.stats().serving is None
    memory.record(episode(2))
    wait_for(lambda: memory.stats().serving is not None)
    assert handle.running
    handle.stop()
    assert not handle.running
    assert memory.answer("which disk is full?", route="tuned").adapter == "operations-v1"  # type: ignore[arg-type]
    assert {one.kind for one in rounds} == {"waits", "distilled"}
