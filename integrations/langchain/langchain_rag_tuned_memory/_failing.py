"""What goes wrong in the memory does not stop the agent, unless it was asked to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rag_tuned_memory.errors import InvalidInput

OnError = Literal["log", "raise"]


class FailOpen:
    """Logs what is raised in its blocks as a warning, or lets it through where ``on_error`` is ``raise``."""

    def __init__(self, on_error: OnError, logger: logging.Logger) -> None:
        if on_error not in ("log", "raise"):
            raise InvalidInput(f"must be 'log' or 'raise', is {on_error!r}", place="on_error")
        self.on_error = on_error
        self._logger = logger

    @contextmanager
    def __call__(self, doing: str, *, always: bool = False) -> Iterator[None]:
        """``always`` logs in any case: another error is on its way that must not be hidden."""
        try:
            yield
        except Exception as error:
            if self.on_error == "raise" and not always:
                raise
            self._logger.warning("the memory could not %s, the agent goes on without it: %s", doing, error)
