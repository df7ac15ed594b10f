"""When to distil: a policy, what is known of a namespace, and a pure function over both."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Self

from pydantic import Field, model_validator

from rag_tuned_memory.distil.checked import CheckedModel
from rag_tuned_memory.errors import InvalidInput


class DistilPolicy(CheckedModel):
    """What starts a run; any one of the three triggers does, and None switches a trigger off.

    Raises InvalidRecipe, naming the field, for values that are out of range and for a policy that can never fire
    (inside another pydantic model, that model's ValidationError says the same).
    """

    named: ClassVar[str] = "distillation policy"

    every_n: int | None = Field(default=20, ge=1)
    """So many trajectories that the last run did not see."""
    at_least_every: timedelta | None = Field(default=timedelta(days=1), gt=timedelta(0))
    """So much time since the last run, where there is anything new at all."""
    after_failures: int | None = Field(default=5, ge=1)
    """So many failed episodes that the last run did not see."""
    min_trajectories: int = Field(default=5, ge=1)
    """Nothing starts while the namespace holds fewer in all."""

    @model_validator(mode="after")
    def _can_fire(self) -> Self:
        if self.every_n is None and self.at_least_every is None and self.after_failures is None:
            raise ValueError("this policy can never fire: set every_n, at_least_every or after_failures")
        return self


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What is known of a namespace at the time ``now``.

    ``new_trajectories`` and the ``new_failures`` among them were written since the watermark of the last run, whatever
    its gate decided (counted from the last *accepted* adapter, a rejected one would be trained again at once, from the
    same episodes). ``last_run_at`` is None before the first run. ``total`` counts all trajectories. ``retrain`` says
    that a forget tainted the newest adapter, so that a new one without the forgotten episode is due.
    """

    new_trajectories: int
    new_failures: int
    last_run_at: datetime | None
    now: datetime
    total: int
    retrain: bool = False

    def __post_init__(self) -> None:
        if min(self.new_trajectories, self.new_failures, self.total) < 0:
            raise InvalidInput("counts of trajectories cannot be negative", place="PolicyState")
        if self.now.tzinfo is None or (self.last_run_at is not None and self.last_run_at.tzinfo is None):
            raise InvalidInput("times need a time zone", place="PolicyState", remedy="Use datetime.now(UTC).")


@dataclass(frozen=True, slots=True)
class Due:
    """Whether a run shall start, and why or why not. True in a condition when it shall."""

    due: bool
    reason: str

    def __bool__(self) -> bool:
        return self.due


def due(policy: DistilPolicy, state: PolicyState) -> Due:
    """Decide whether to distil now; reads no clock and no file."""
    if state.total < policy.min_trajectories:
        return Due(False, f"{state.total} trajectories in all, at least {policy.min_trajectories} are needed")
    if state.retrain:
        return Due(True, "the newest adapter learned from a forgotten trajectory")
    if state.new_trajectories == 0:
        return Due(False, "nothing new since the last run")
    if policy.every_n is not None and state.new_trajectories >= policy.every_n:
        return Due(True, f"{state.new_trajectories} new trajectories, due from {policy.every_n}")
    if policy.after_failures is not None and state.new_failures >= policy.after_failures:
        return Due(True, f"{state.new_failures} new failures, due from {policy.after_failures}")
    if policy.at_least_every is not None:
        return _due_by_time(policy.at_least_every, state)
    return Due(False, f"{state.new_trajectories} new trajectories with {state.new_failures} failures: too few")


def _due_by_time(interval: timedelta, state: PolicyState) -> Due:
    if state.last_run_at is None:
        return Due(True, f"{state.new_trajectories} new trajectories and no run so far")
    passed = state.now - state.last_run_at
    # A last run in the future means that the clock was set back: one run too many is better than none for years.
    if passed >= interval or passed < timedelta(0):
        return Due(True, f"{state.new_trajectories} new trajectories, last run at {state.last_run_at.isoformat()}")
    return Due(False, f"next run by time in {interval - passed}, {state.new_trajectories} new trajectories wait")
