"""Which waiting requests run together: plain bookkeeping on jobs, without a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.base import Generation, Request

MOST_PADDING = 1024
"""Tokens. One long prompt among many short ones would make all of them long; a batch of its own costs less."""


@dataclass(eq=False)
class Job:
    """One request on its way through the backend.

    ``on_done`` gets the generation or the error; ``on_text`` each piece of text as it is generated.
    Setting ``cancelled`` from any thread drops the request at the next token. ``ids``, ``prefix`` and ``slot`` are
    filled in by the worker.
    """

    request: Request
    on_done: Callable[[Generation | Exception], None]
    on_text: Callable[[str], None] | None = None
    cancelled: bool = False
    ids: tuple[int, ...] = ()
    """Token ids of the prompt without ``prefix``; never empty."""
    prefix: tuple[int, ...] = ()
    """Leading token ids that are computed once for all requests that share them."""
    slot: int | None = None
    reported: bool = False

    def report(self, result: Generation | Exception) -> None:
        """Hand over the result, the first time only."""
        if not self.reported:
            self.reported = True
            self.on_done(result)

    @property
    def tokens(self) -> int:
        """Columns that this job may come to fill in a batch."""
        return len(self.ids) + self.request.max_new_tokens


def check_request(request: Request) -> None:
    """Raise InvalidInput for a request that no model can answer."""
    if request.max_new_tokens < 1:
        raise InvalidInput(f"max_new_tokens must be at least 1, not {request.max_new_tokens}")
    if not (math.isfinite(request.temperature) and request.temperature >= 0):
        raise InvalidInput(f"temperature must be 0 (greedy) or more, not {request.temperature}")
    if not 0 <= request.shared_prefix <= len(request.messages):
        raise InvalidInput(f"shared_prefix {request.shared_prefix} of {len(request.messages)} messages")
    if not all(request.stop):
        raise InvalidInput("a stop string cannot be empty")


def next_batch(waiting: Sequence[Job], *, max_rows: int, max_tokens: int) -> list[Job]:
    """The jobs to run next, led by the first stream (someone is watching), else by the oldest job.

    The others are those nearest to the leader in length, so that little is padded. When the leader's adapter alone
    can fill the batch, the batch is of that adapter only, which is faster; otherwise adapters mix. A batch has one
    prefix, and with a prefix one adapter, because the prefix's keys and values depend on it. ``max_tokens`` bounds
    rows times longest row (a single job may exceed it), ``MOST_PADDING`` what of it is padding.
    """
    leader = next((job for job in waiting if job.on_text), waiting[0])
    fitting = [job for job in waiting if job is not leader and job.prefix == leader.prefix]
    same = [job for job in fitting if job.slot == leader.slot]
    others = same if leader.prefix or len(same) >= max_rows - 1 else fitting
    batch, longest, own = [leader], leader.tokens, leader.tokens
    for job in sorted(others, key=lambda job: abs(job.tokens - leader.tokens)):
        longest, own = max(longest, job.tokens), own + job.tokens
        padded = longest * (len(batch) + 1)
        if len(batch) == max_rows or padded > max_tokens or padded - own > MOST_PADDING:
            break
        batch.append(job)
    return batch
