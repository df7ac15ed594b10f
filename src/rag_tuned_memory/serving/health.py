"""What a server answers when it is asked how it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Health:
    """``hung``: connected, and no answer in time. ``refused``: no connection."""

    state: Literal["ready", "unhealthy", "hung", "refused"]
    detail: str
    seconds: float

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self.state == "ready"
