"""Optional dependencies: what to say where one is not installed."""

from __future__ import annotations

from rag_tuned_memory.errors import MissingExtra


def missing(what: str, library: str, extra: str) -> MissingExtra:
    """The error for ``what``, which needs ``library``; ``extra`` is the extra of this package that brings it."""
    return MissingExtra(
        f"{what} needs {library}, which is not installed",
        remedy=f"pip install 'langchain-rag-tuned-memory[{extra}]'",
    )
