"""Sequence numbers: the time in microseconds, never the same twice."""

from __future__ import annotations

import threading
import time


class Clock:
    """Numbers that grow with each call, also while the system's clock stands still or goes back.

    Several processes agree as far as their clocks do: Weaviate has no counter that they could share.
    """

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def next(self, after: int = 0) -> int:
        """Microseconds since 1970, more than any number before and than ``after``."""
        with self._lock:
            self._last = max(time.time_ns() // 1000, self._last + 1, after + 1)
            return self._last
