"""Circuit breaking: what failed several times in a row is left alone for a while, longer each time."""

from __future__ import annotations

import random
import time

TRIPS_AFTER = 2
"""Failures in a row."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds."""


class Breaker:
    """The circuit of one replica: closed while it answers, open for a pause after failures, then tried again.

    Pauses double, and are random (half to whole) so that several clients do not come back at the same moment. After
    M. Nygard, "Release It!" (2007).
    """

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0

    @property
    def open(self) -> bool:
        """Whether it is to be left alone now."""
        return time.monotonic() < self._until

    @property
    def suspect(self) -> bool:
        """Whether the last thing it did was to fail."""
        return self._failures > 0

    def failed(self) -> None:
        """It could not be reached, or did not answer in time."""
        self._failures += 1
        if self._failures >= TRIPS_AFTER:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failures - TRIPS_AFTER))
            self._until = time.monotonic() + random.uniform(pause / 2, pause)

    def succeeded(self) -> None:
        """It answered."""
        self._failures, self._until = 0, 0.0
