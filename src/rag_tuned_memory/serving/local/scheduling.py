"""Continuous batching: requests join and leave between two steps, while others run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rag_tuned_memory.serving.local.batching import Job, columns_of, leader_of, next_batch
from rag_tuned_memory.serving.local.decoding import Group

if TYPE_CHECKING:
    from rag_tuned_memory.serving.local.engine import Engine


class Scheduler:
    """The groups that run, bounded together by rows, and by rows times longest row of each group.

    Jobs that come in are computed to their first token by themselves and then join a group that they fit; those that
    fit none are a group of their own, and groups take turns, token by token. The first in line is never overtaken by
    smaller ones when there is no room for it.

    Args:
        engine: gives the engine.
        max_rows: most rows of all groups.
        max_tokens: most tokens of all groups, padding included; one job alone may exceed it.
    """

    def __init__(self, engine: Callable[[], Engine], *, max_rows: int, max_tokens: int) -> None:
        self._engine = engine
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._groups: list[Group] = []

    @property
    def running(self) -> list[Job]:
        """The jobs that run."""
        return [job for group in self._groups for job in group.jobs]

    def step(self, waiting: list[Job]) -> None:
        """Admit what fits of the waiting jobs, which leave the list, and compute one token for all that run."""
        self._admit(waiting)
        for group in list(self._groups):
            self._advance(group)

    def _admit(self, waiting: list[Job]) -> None:
        rows, tokens = self._max_rows - len(self.running), self._max_tokens - self._used()
        if not waiting or rows < 1 or (self._groups and leader_of(waiting).tokens > tokens):
            return
        jobs = next_batch(waiting, max_rows=rows, max_tokens=tokens)
        waiting[:] = [job for job in waiting if job not in jobs]
        try:
            new = Group(self._engine(), jobs)
        except Exception as error:
            _fail(jobs, error)
            return
        self._groups.append(new)
        self._advance(new)
        if new in self._groups:
            self._join(new)

    def _join(self, new: Group) -> None:
        for group in self._groups:
            if group is new or not group.joins(new):
                continue
            apart = columns_of(group.jobs) + columns_of(new.jobs)
            if self._used() - apart + columns_of(group.jobs + new.jobs) <= self._max_tokens:
                self._groups.remove(new)
                jobs = group.jobs + new.jobs
                try:
                    group.take_in(new)
                except Exception as error:  # no memory for both, say: neither is whole any more
                    self._groups.remove(group)
                    _fail(jobs, error)
                return

    def _advance(self, group: Group) -> None:
        jobs = group.jobs
        try:
            group.step()
        except Exception as error:
            self._groups.remove(group)
            _fail(jobs, error)
        else:
            if not group.jobs:
                self._groups.remove(group)

    def _used(self) -> int:
        return sum(columns_of(group.jobs) for group in self._groups)


def _fail(jobs: list[Job], error: Exception) -> None:
    for job in jobs:
        job.report(error)
