"""Which waiting requests run together: plain bookkeeping on jobs, without a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rag_tuned_memory.errors import BackendError, InvalidInput, RagTunedMemoryError
from rag_tuned_memory.serving.base import Generation, Request
from rag_tuned_memory.serving.local.asked import Constraint, Step, TokenRequest

MOST_PADDING = 1024
"""Tokens. One long prompt among many short ones would make all of them long; a batch of its own costs less."""


@dataclass(eq=False)
class Job:
    """One request on its way through the backend.

    ``on_done`` gets the result or the error: a Request's Generation, a TokenRequest's last Step. ``on_text`` gets each
    piece of a Request's text as it is generated, ``on_step`` each of a TokenRequest's tokens but the last. Setting
    ``cancelled`` from any thread drops the request at the next token. ``ids``, ``prefix``, ``slot`` and ``constraint``
    are filled in by the worker.
    """

    request: Request | TokenRequest
    on_done: Callable[[Any], None]
    on_text: Callable[[str], None] | None = None
    on_step: Callable[[Step], None] | None = None
    cancelled: bool = False
    ids: tuple[int, ...] = ()
    """Token ids of the prompt without ``prefix``; never empty."""
    prefix: tuple[int, ...] = ()
    """Leading token ids that are computed once for all requests that share them."""
    slot: int | None = None
    constraint: Constraint | None = None
    reported: bool = False

    def report(self, result: Generation | Step | Exception) -> None:
        """Hand over the result, the first time only; an error as one of ours."""
        if not self.reported:
            self.reported = True
            self.on_done(ours(result) if isinstance(result, Exception) else result)

    @property
    def tokens(self) -> int:
        """Columns that this job may come to fill in a batch."""
        return len(self.ids) + self.request.max_new_tokens

    @property
    def watched(self) -> bool:
        """Whether someone reads the answer while it is written."""
        return self.on_text is not None or getattr(self.request, "live", False)


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


def check_tokens(request: TokenRequest) -> None:
    """Raise InvalidInput for a prompt of token ids that no model can continue."""
    if not request.ids:
        raise InvalidInput("a prompt needs at least one token")
    if request.max_new_tokens < 1:
        raise InvalidInput(f"max_new_tokens must be at least 1, not {request.max_new_tokens}")
    if not (math.isfinite(request.sampling.temperature) and request.sampling.temperature >= 0):
        raise InvalidInput(f"temperature must be 0 (greedy) or more, not {request.sampling.temperature}")


def ours(error: Exception) -> Exception:
    """The error itself, or a BackendError where it is none of this package's."""
    if isinstance(error, RagTunedMemoryError):
        return error
    wrapped = BackendError(f"the model failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def leader_of(waiting: Sequence[Job]) -> Job:
    """The first stream (someone is watching), else the oldest job."""
    return next((job for job in waiting if job.watched), waiting[0])


def columns_of(jobs: Sequence[Job]) -> int:
    """Tokens that these jobs may come to fill as one batch, padding included."""
    return len(jobs) * max((job.tokens for job in jobs), default=0)


def next_batch(waiting: Sequence[Job], *, max_rows: int, max_tokens: int) -> list[Job]:
    """The jobs whose prompts are computed next, led by ``leader_of`` them.

    The others are those nearest to the leader in length, so that little is padded. When the leader's adapter alone
    can fill the batch, the batch is of that adapter only, which is faster; otherwise adapters mix. A batch has one
    prefix, and with a prefix one adapter, because the prefix's keys and values depend on it. ``max_tokens`` bounds
    rows times longest row (a single job may exceed it), ``MOST_PADDING`` what of it is padding.
    """
    leader = leader_of(waiting)
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
