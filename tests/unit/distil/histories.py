"""Histories for tests: stored trajectories, from the demo's world and drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.store.base import StoredTrajectory
from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory


def stored(trajectories: Sequence[Trajectory]) -> list[StoredTrajectory]:
    """As a store gives them, in order of recording."""
    recorded = datetime(2026, 9, 1, tzinfo=UTC)
    return [
        StoredTrajectory(trajectory, number, recorded, trajectory.content_hash)
        for number, trajectory in enumerate(trajectories, start=1)
    ]


def demo(episodes: int = 20, seed: int = 5) -> list[StoredTrajectory]:
    return stored(incidents("ops", episodes=episodes, seed=seed))


def said(text: str, *, goal: str = "", **fields: Any) -> Trajectory:
    """A trajectory of one message."""
    return Trajectory(namespace="n", goal=goal, steps=(Step(kind=StepKind.MESSAGE, actor="user", text=text),), **fields)


_words = st.sampled_from(
    ["INC-12", "user_7", "Caroline", "the", "The thing", "a", "Zoë", "память", "4 March 2026", "{key}", "{0}", "%s"]
)
texts = st.one_of(st.text(max_size=30), st.lists(_words, max_size=4).map(" ".join)).map(
    lambda text: text.encode("utf-8", "ignore").decode()
)
_values = st.recursive(
    st.one_of(texts, st.integers(-10, 10_000), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
_arguments = st.dictionaries(st.one_of(st.sampled_from(["id", "user_id", "cause", "fix", "status"]), texts), _values)
_times = st.one_of(
    st.none(),
    st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))])),
    st.datetimes(datetime(2026, 3, 1), datetime(2026, 5, 1), timezones=st.just(UTC)),
)
_tools = st.sampled_from(["look", "fix", "close_it", "…"])


@st.composite
def _steps(draw: st.DrawFn) -> Step:
    kind = draw(st.sampled_from(StepKind))
    text = draw(st.one_of(texts, _values.map(str), _arguments.map(_json)))
    tool = draw(_tools) if kind in (StepKind.TOOL_CALL, StepKind.TOOL_RESULT) else None
    return Step(
        kind=kind,
        text=text or "x",
        actor=draw(st.sampled_from(["user", "assistant", "Caroline", None])),
        tool=tool,
        arguments=draw(_arguments) if kind is StepKind.TOOL_CALL else None,
        error=draw(st.sampled_from([None, "failed"])) if tool else None,
    )


def _json(value: Any) -> str:
    import json

    return json.dumps(value)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    """Anything that can be recorded."""
    return Trajectory(
        namespace="n",
        steps=tuple(draw(st.lists(_steps(), min_size=1, max_size=5))),
        goal=draw(texts),
        outcome=Outcome(success=draw(st.sampled_from([True, False, None]))),
        started_at=draw(_times),
        ended_at=draw(_times),
        source_id=draw(st.one_of(st.none(), texts.filter(bool))),
    )


histories = st.lists(trajectories(), max_size=6, unique_by=lambda trajectory: trajectory.id).map(stored)
