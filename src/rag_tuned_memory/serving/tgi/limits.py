"""Time limits: whatever a server does or does not do, a call ends."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from typing import TypeVar

import anyio

from rag_tuned_memory.errors import BackendUnavailable, InvalidInput

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds that a TGI server may take.

    A server that is busy keeps requests in a queue, so ``first_token`` is longer than any single step.

    Raises:
        InvalidInput: a limit is not above 0.
    """

    connect: float = 5.0
    """Until a connection is there."""
    first_token: float = 60.0
    """Until the first token, the wait in the server's queue included."""
    between_tokens: float = 30.0
    """Between two tokens; the comments that keep an idle stream open do not count."""
    total: float = 300.0
    """For one request with all its tries."""
    probe: float = 5.0
    """For one question about the server itself (``/info``, ``/health``, ``/metrics``, ``/tokenize``)."""

    def __post_init__(self) -> None:
        for one in fields(self):
            if not (seconds := getattr(self, one.name)) > 0 or math.isnan(seconds):
                raise InvalidInput(f"the time limit {one.name} must be above 0, not {seconds}")


class Budget:
    """What is left of the time that one request may take; the clock runs from ``start``."""

    def __init__(self, total: float) -> None:
        self._total = total
        self._began: float | None = None

    def start(self) -> None:
        """The first call counts."""
        if self._began is None:
            self._began = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since ``start``."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def left(self, seconds: float) -> float:
        """``seconds``, or less where less is left; at least 0."""
        return max(0.0, min(seconds, self._total - self.spent))


class Patience:
    """Waits with time limits, and ends all waiting when its owner is closed."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._scopes: set[anyio.CancelScope] = set()
        self._closed = False

    async def wait(self, function: Callable[[], Awaitable[T]], seconds: float, what: str) -> T:
        """The result of ``function``; ``what`` names what is waited for.

        Raises:
            BackendUnavailable: it took longer than ``seconds``, or the owner was closed meanwhile.
        """
        self.check_open()
        with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
            self._scopes.add(scope)
            try:
                return await function()
            finally:
                self._scopes.discard(scope)
        self.check_open()
        raise BackendUnavailable(
            f"the server hangs: {what} did not come within {seconds:.3g} s",
            place=self._place,
            remedy="Look at its log and its GPU, restart it, or raise the time limit where it is only slow.",
        )

    def check_open(self) -> None:
        """Raise BackendUnavailable after ``close``."""
        if self._closed:
            raise BackendUnavailable("the backend was closed", place=self._place)

    def close(self) -> None:
        """Everybody who waits gets BackendUnavailable, and so does everybody who comes later."""
        self._closed = True
        for scope in self._scopes:
            scope.cancel()
