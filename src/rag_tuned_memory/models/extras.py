"""Imports of optional dependencies, with an error that says what to install."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from rag_tuned_memory.errors import MissingExtra


def require(module: str, *, extra: str = "local") -> None:
    """Check, without importing it, that ``module`` is installed.

    Raises:
        MissingExtra: it is not; the remedy is the command that installs ``extra``.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(f"{module} is not installed", remedy=f'Run: pip install "rag-tuned-memory[{extra}]"')


def import_extra(module: str, *, extra: str = "local") -> ModuleType:
    """Import ``module``, a part of the extra ``extra``. Raises MissingExtra."""
    require(module.partition(".")[0], extra=extra)
    return importlib.import_module(module)
