"""Episodes for tests of stores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from rag_tuned_memory.embedding.base import EmbedderIdentity, Vectors
from rag_tuned_memory.store import Entry, EpisodeStore, Passage
from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory

EMBEDDER = EmbedderIdentity(model="test", revision="1", dimension=16)
START = datetime(2026, 3, 1, tzinfo=UTC)


def vector(text: str, dimension: int = EMBEDDER.dimension) -> Vectors:
    """A direction of its own for each text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    direction = np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)
    return direction / np.linalg.norm(direction)


def vectors(texts: Sequence[str]) -> Vectors:
    return np.array([vector(text) for text in texts], dtype=np.float32).reshape(len(texts), EMBEDDER.dimension)


def episode(namespace: str, source_id: str, *texts: str, tool: str | None = None, **fields: Any) -> Trajectory:
    kind = StepKind.TOOL_CALL if tool else StepKind.MESSAGE
    steps = tuple(Step(kind=kind, text=text, actor="agent", tool=tool) for text in texts)
    return Trajectory(namespace=namespace, source_id=source_id, steps=steps, **fields)


def passages_of(trajectory: Trajectory) -> list[Passage]:
    return [
        Passage(
            trajectory_id=trajectory.id,
            step=number,
            chunk=0,
            kind=step.kind,
            text=step.text,
            indexed=step.text,
            actor=step.actor,
            tool=step.tool,
            ref=step.ref,
            time=step.started_at or trajectory.time,
        )
        for number, step in enumerate(trajectory.steps)
    ]


def entry(trajectory: Trajectory) -> Entry:
    """As ``record`` gives it to the store, for many at once."""
    passages = passages_of(trajectory)
    return Entry(trajectory, passages, vectors([p.indexed for p in passages]))


async def record(store: EpisodeStore, trajectory: Trajectory) -> bool:
    one = entry(trajectory)
    return await store.put(trajectory, one.passages, one.vectors, EMBEDDER)


async def record_many(store: EpisodeStore, trajectories: Sequence[Trajectory]) -> list[bool]:
    return await store.put_many([entry(one) for one in trajectories], EMBEDDER)


def day(number: int) -> datetime:
    return START + timedelta(days=number)


def succeeded(value: bool | None) -> Outcome:
    return Outcome(success=value)
