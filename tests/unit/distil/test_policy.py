from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from rag_tuned_memory.distil.policy import DistilPolicy, PolicyState, due
from rag_tuned_memory.errors import InvalidInput, InvalidRecipe

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)
QUIET = PolicyState(new_trajectories=1, new_failures=0, last_run_at=NOW - timedelta(hours=1), now=NOW, total=100)
POLICY = DistilPolicy(every_n=20, at_least_every=timedelta(days=1), after_failures=5, min_trajectories=10)


@pytest.mark.parametrize(
    ("change", "fires", "reason"),
    [
        ({}, False, "next run by time in 23:00:00"),
        ({"new_trajectories": 19}, False, "19 new trajectories wait"),
        ({"new_trajectories": 20}, True, "20 new trajectories, due from 20"),
        ({"new_failures": 4, "new_trajectories": 9}, False, "wait"),
        ({"new_failures": 5, "new_trajectories": 9}, True, "5 new failures, due from 5"),
        ({"last_run_at": NOW - timedelta(days=1)}, True, "last run at 2025-02-28"),
        ({"last_run_at": NOW - timedelta(days=1, seconds=-1)}, False, "next run by time in 0:00:01"),
        ({"last_run_at": NOW - timedelta(days=99), "new_trajectories": 0}, False, "nothing new"),
        ({"last_run_at": NOW + timedelta(days=400)}, True, "last run at 2026"),
        ({"last_run_at": None}, True, "no run so far"),
        ({"last_run_at": None, "new_trajectories": 0}, False, "nothing new"),
        ({"new_trajectories": 9, "new_failures": 9, "total": 9, "last_run_at": None}, False, "at least 10 are needed"),
        ({"new_trajectories": 0, "retrain": True}, True, "forgotten"),
        ({"retrain": True, "total": 9}, False, "at least 10 are needed"),
    ],
)
def test_due(change: dict[str, Any], fires: bool, reason: str) -> None:
    verdict = due(POLICY, replace(QUIET, **change))
    assert verdict.due is fires
    assert bool(verdict) is fires
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("policy", "fires"),
    [
        (DistilPolicy(every_n=None), True),
        (DistilPolicy(at_least_every=None), True),
        (DistilPolicy(every_n=None, after_failures=None, at_least_every=timedelta(days=365)), False),
        (DistilPolicy(every_n=30, after_failures=None, at_least_every=None), True),
        (DistilPolicy(every_n=31, after_failures=None, at_least_every=None), False),
    ],
)
def test_a_trigger_that_is_off_never_fires(policy: DistilPolicy, fires: bool) -> None:
    assert due(policy, replace(QUIET, new_trajectories=30, new_failures=6)).due is fires


@given(new=st.integers(0, 50), failures=st.integers(0, 50), hours=st.integers(0, 72) | st.none())
def test_more_of_anything_new_never_undoes_a_due_run(new: int, failures: int, hours: int | None) -> None:
    last = None if hours is None else NOW - timedelta(hours=hours)
    state = replace(QUIET, new_trajectories=new, new_failures=failures, last_run_at=last)
    if due(POLICY, state):
        assert due(POLICY, replace(state, new_trajectories=new + 1))
        assert due(POLICY, replace(state, new_failures=failures + 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"every_n": None, "at_least_every": None, "after_failures": None}, "can never fire: set every_n"),
        ({"every_n": 0}, "every_n"),
        ({"after_failures": -1}, "after_failures"),
        ({"at_least_every": timedelta(0)}, "at_least_every"),
        ({"min_trajectories": 0}, "min_trajectories"),
        ({"evry_n": 3}, "evry_n"),
    ],
)
def test_a_policy_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRecipe, match=message):
        DistilPolicy(**values)


def test_a_policy_survives_json_and_other_models() -> None:
    class Holder(BaseModel):
        policy: DistilPolicy

    assert DistilPolicy.model_validate_json(POLICY.model_dump_json()) == POLICY
    assert Holder.model_validate({"policy": {"every_n": 3}}).policy.every_n == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new_trajectories": -1}, "negative"),
        ({"now": datetime(2025, 1, 1)}, "time zone"),
        ({"last_run_at": datetime(2025, 1, 1)}, "time zone"),
    ],
)
def test_a_state_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        replace(QUIET, **change)
