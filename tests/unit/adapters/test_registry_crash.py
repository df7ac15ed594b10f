"""Processes that are killed, and processes that race: the registry is whole at every moment."""

import multiprocessing
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from killed import killed_at
from rag_tuned_memory.adapters.manifest import Draft
from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.adapters.states import State

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


def test_registration_killed_at_every_step_leaves_nothing_or_a_whole_version(
    registry: AdapterRegistry, run: Path, draft: Callable[..., Draft]
) -> None:
    step, seen_nothing, seen_whole = 0, 0, 0
    while True:
        step += 1
        before = len(registry.list("alice"))
        killed = killed_at(step, lambda: registry.register("alice", run, draft()))
        manifests = registry.list("alice")
        assert len(manifests) - before in (0, 1)
        for manifest in manifests:
            assert set(manifest.files) == {"adapter_model.safetensors", "adapter_config.json", "extra/dataset.jsonl"}
            registry.path(manifest.name)
            assert registry.state(manifest.name) is State.CANDIDATE
        if not killed:
            break
        seen_whole += len(manifests) - before
        seen_nothing += 1 - (len(manifests) - before)
    assert step > 15
    assert seen_nothing > 10
    assert seen_whole > 0
    # What the killed ones left behind is gone with the next registration.
    assert list((registry.folder / ".staging").iterdir()) == []


def test_promotion_killed_at_every_step_happens_whole_or_not_at_all(
    registry: AdapterRegistry, accepted: Callable[..., str]
) -> None:
    names = [accepted(), accepted()]
    registry.promote(names[0], "start")
    registry.promote(names[1], "start")
    step, undone, done = 0, 0, 0
    while True:
        step += 1
        serving = registry.serving("alice")
        assert serving is not None
        other = names[1 - names.index(serving.name)]
        lines = sum(len(registry.history(name)) for name in names)
        killed = killed_at(step, partial(registry.promote, other, f"step {step}"))
        states = {name: registry.state(name) for name in names}
        happened = states[other] is State.SERVING
        assert sorted(states.values()) == [State.RETIRED, State.SERVING]
        assert sum(len(registry.history(name)) for name in names) == lines + 2 * happened
        if not killed:
            break
        done, undone = done + happened, undone + (not happened)
    assert undone > 3
    assert done > 3
    sequences = sorted(line.sequence for name in names for line in registry.history(name))
    assert sequences == list(range(1, len(sequences) + 1))


def _register_many(folder: Path, run: Path, draft: Draft, times: int) -> None:
    registry = AdapterRegistry(folder)
    for _ in range(times):
        registry.conclude(registry.register("alice", run, draft).name)


def test_processes_that_register_at_once_get_versions_of_their_own(
    registry: AdapterRegistry, run: Path, draft: Callable[..., Draft]
) -> None:
    assert FORK is not None
    workers = [FORK.Process(target=_register_many, args=(registry.folder, run, draft(), 8)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [manifest.version for manifest in registry.list("alice")] == list(range(1, 25))
    assert all(registry.state(manifest.name) is State.ACCEPTED for manifest in registry.list())


def _promote_forever(folder: Path, names: list[str]) -> None:
    registry = AdapterRegistry(folder)
    while True:
        for name in names:
            registry.promote(name, "race")


def test_exactly_one_serves_while_processes_promote_and_are_killed(
    registry: AdapterRegistry, accepted: Callable[..., str]
) -> None:
    assert FORK is not None
    names = [accepted() for _ in range(3)]
    registry.promote(names[0], "start")
    for round_ in range(6):
        workers = [FORK.Process(target=_promote_forever, args=(registry.folder, names)) for _ in range(2)]
        for worker in workers:
            worker.start()
        end = time.monotonic() + 0.2 + 0.03 * round_
        while time.monotonic() < end:
            with registry._locked():
                logs = registry._logs("alice")
            assert [log[-1].new for log in logs.values()].count(State.SERVING) == 1
        for worker in workers:
            worker.kill()
            worker.join()
    lines = sorted((line.sequence, line) for name in names for line in registry.history(name))
    assert [sequence for sequence, _ in lines] == list(range(1, len(lines) + 1))
    assert len(lines) > 20
