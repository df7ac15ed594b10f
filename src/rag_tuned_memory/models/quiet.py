"""Keeps transformers' own progress bars, reports and warnings off the screen while a model is loaded."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers inside the block, and put its settings back as they were.

    They belong to the process; the lock keeps two threads from restoring each other's.
    """
    from transformers.utils import logging

    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
