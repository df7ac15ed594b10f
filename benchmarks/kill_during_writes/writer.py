"""What the killed process does: a fixed sequence of writes, each acknowledged on a pipe after it returned."""

from __future__ import annotations

import itertools
import os
from typing import NamedTuple

import anyio
import numpy as np

from rag_tuned_memory.embedding.base import EmbedderIdentity, Vectors
from rag_tuned_memory.store.base import Passage
from rag_tuned_memory.store.sqlite import SqliteStore
from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory

NAMESPACE = "killed"
EMBEDDER = EmbedderIdentity(model="kill-test", revision="1", dimension=16)


class Operation(NamedTuple):
    """Write version ``version`` of episode ``episode``, or remove it (None)."""

    episode: int
    version: int | None


def operation(number: int) -> Operation:
    """The ``number``-th write: mostly new episodes, sometimes an older one again with feedback, or its removal."""
    if number % 5 == 3:
        return Operation(number - 2, 1)
    if number % 7 == 6 and (number - 4) % 5 != 3:
        return Operation(number - 4, None)
    return Operation(number, 0)


def episode(run: str, number: int, version: int) -> tuple[Trajectory, list[Passage], Vectors]:
    """An episode that both sides can make: the same arguments give the same content."""
    texts = [f"{run} step {i} of incident INC-{number}: " + f"disk {i} is full " * 12 for i in range(4)]
    steps = [Step(kind=StepKind.MESSAGE, text=text, actor="agent") for text in texts]
    if version:
        steps.append(Step(kind=StepKind.FEEDBACK, text=f"that was right ({version})", actor="user"))
    trajectory = Trajectory(
        namespace=NAMESPACE, steps=tuple(steps), source_id=f"{run}/{number}", outcome=Outcome(success=number % 2 == 0)
    )
    passages = [
        Passage(trajectory.id, i, 0, s.kind, s.text, f"{s.actor}: {s.text}", s.actor) for i, s in enumerate(steps)
    ]
    vectors = np.random.default_rng(number).standard_normal((len(steps), EMBEDDER.dimension)).astype(np.float32)
    return trajectory, passages, vectors


async def _write(path: str, run: str, acknowledge: int) -> None:
    store = SqliteStore(path, busy_timeout=60)
    for number in itertools.count():
        what = operation(number)
        trajectory, passages, vectors = episode(run, what.episode, what.version or 0)
        if what.version is None:
            await store.delete(NAMESPACE, [trajectory.id])
        else:
            await store.put(trajectory, passages, vectors, EMBEDDER)
        os.write(acknowledge, b".")


def write(path: str, run: str, acknowledge: int) -> None:
    """Write until killed; one byte on ``acknowledge`` (a pipe) for each operation that returned."""
    anyio.run(_write, path, run, acknowledge)
