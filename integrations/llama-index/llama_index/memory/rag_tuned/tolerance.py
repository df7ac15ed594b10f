"""What happens to a run when its memory fails."""

from __future__ import annotations

import logging
from typing import Literal

from rag_tuned_memory.errors import InvalidInput

OnError = Literal["log", "raise"]
"""``log``: a warning, and the run goes on without its memory. ``raise``: the error is the caller's."""


def check(on_error: str) -> OnError:
    """``on_error``, if it is one. Raises InvalidInput."""
    if on_error == "log":
        return "log"
    if on_error == "raise":
        return "raise"
    raise InvalidInput(f"{on_error!r} is not known", place="on_error", remedy="Allowed are 'log' and 'raise'.")


def tolerate(error: Exception, on_error: OnError, logger: logging.Logger, without: str) -> None:
    """Log ``error`` and that the run goes on ``without``, or raise it. Bad input is always raised."""
    overlook(error, "raise" if isinstance(error, InvalidInput) else on_error, logger, without)


def overlook(error: Exception, on_error: OnError, logger: logging.Logger, without: str) -> None:
    """As ``tolerate``, where what was given is no caller's mistake (a message of a run): bad input is logged too."""
    if on_error == "raise":
        raise error
    logger.warning("%s: %s: %s", without, type(error).__name__, error)
