"""What a server answers when it is asked how it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a server can answer.

    ``ready``; ``unhealthy``: it answers and says no; ``hung``: it takes connections and does not answer in time (the
    process that holds the model hangs); ``refused``: it takes no connections (it starts, drains, or is not there).
    """

    state: Literal["ready", "unhealthy", "hung", "refused"]
    detail: str = ""
    seconds: float = 0.0
    """How long the answer took."""

    @property
    def ready(self) -> bool:
        """Whether requests may be sent."""
        return self.state == "ready"
