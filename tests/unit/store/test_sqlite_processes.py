"""Several processes on one file, and processes that are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rag_tuned_memory.store.sqlite import SqliteStore

pytestmark = pytest.mark.anyio

KILLS = Path(__file__).parents[3] / "benchmarks" / "kill_during_writes" / "run.py"
WORKER = """
import sys, anyio, numpy as np
from rag_tuned_memory.embedding.base import EmbedderIdentity
from rag_tuned_memory.store import Passage, open_store
from rag_tuned_memory.trajectory import Step, StepKind, Trajectory

async def main(path, worker):
    store = open_store(f"sqlite:///{path}")
    embedder = EmbedderIdentity(model="test", revision="1", dimension=8)
    vector = np.eye(1, 8, dtype=np.float32)
    for number in range(25):
        text = f"worker {worker} number {number}"
        for namespace in ("shared", f"own-{worker}"):
            one = Trajectory(namespace=namespace, source_id=text, steps=(Step(kind=StepKind.MESSAGE, text=text),))
            await store.put(one, [Passage(one.id, 0, 0, StepKind.MESSAGE, text, text)], vector, embedder)
            assert (await store.get(namespace, one.id)).trajectory == one
            found = await store.candidates(namespace, text, vector[0], limit=200)
            assert one.id in {c.passage.trajectory_id for c in found}
    await store.close()

anyio.run(main, *sys.argv[1:])
"""


def run_workers(path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(path)]
    workers = [subprocess.Popen([*command, str(n)], stderr=subprocess.PIPE, text=True) for n in range(4)]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors


async def test_processes_write_and_read_one_file_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"  # made by whichever process is first
    run_workers(path)
    store = SqliteStore(path)
    assert await store.namespaces() == ["own-0", "own-1", "own-2", "own-3", "shared"]
    assert (await store.stats("shared")).trajectories == 100
    sequences = [stored.sequence async for stored in store.scan("shared")]
    assert sequences == list(range(1, 101))
    assert await store.check() == []
    await store.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the kill test forks its writers")
def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, str(KILLS), "--kills", "20", "--folder", str(tmp_path), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["kills"] == 20
    assert result["acknowledged_writes"] > 0
    assert result["lost_or_half_written"] == []
