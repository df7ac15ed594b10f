"""Where episodes are kept and found."""

from __future__ import annotations

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.store.base import (
    NO_FILTER,
    Candidate,
    EpisodeStore,
    Filter,
    Heading,
    Passage,
    Projection,
    StoredTrajectory,
    StoreStats,
)

__all__ = [
    "NO_FILTER",
    "Candidate",
    "EpisodeStore",
    "Filter",
    "Heading",
    "Passage",
    "Projection",
    "StoreStats",
    "StoredTrajectory",
    "open_store",
]

_SQLITE = "sqlite:///"


def open_store(url: str, *, busy_timeout: float = 10.0, max_bytes: int | None = None) -> EpisodeStore:
    """The store that ``url`` names: ``sqlite:///relative/path``, ``sqlite:////absolute/path``, ``sqlite:///:memory:``.

    Nothing is opened yet: the first call does it, in a worker thread, and raises what is wrong with the file.
    ``busy_timeout`` is in seconds; ``max_bytes`` bounds the file.

    Raises:
        InvalidInput: another kind of URL.
    """
    from rag_tuned_memory.store.sqlite import SqliteStore

    path = url.removeprefix(_SQLITE)
    if path == url or not path:
        raise InvalidInput(
            f"no store has the URL {url!r}",
            place="store (RTM_STORE)",
            remedy="Use sqlite:///path/to/memory.db or sqlite:///:memory:.",
        )
    return SqliteStore(path, busy_timeout=busy_timeout, max_bytes=max_bytes)
