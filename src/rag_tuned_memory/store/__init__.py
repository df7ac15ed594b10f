"""Where episodes are kept and found."""

from __future__ import annotations

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.models.extras import require
from rag_tuned_memory.store.base import (
    NO_FILTER,
    Candidate,
    Entry,
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
    "Entry",
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
_WEAVIATE = ("weaviate://", "weaviates://", "weaviate+embedded://")


def open_store(
    url: str, *, busy_timeout: float = 10.0, max_bytes: int | None = None, api_key: str | None = None
) -> EpisodeStore:
    """The store that ``url`` names.

    ``sqlite:///relative/path``, ``sqlite:////absolute/path``, ``sqlite:///:memory:``; ``weaviate://host:8080?grpc=50051``,
    ``weaviates://cluster`` (TLS), ``weaviate+embedded:///folder``.

    Nothing is opened yet: the first call does it, and raises what is wrong. ``busy_timeout`` (seconds) and
    ``max_bytes``, which bounds the file, are for SQLite; ``api_key`` is for Weaviate.

    Raises:
        InvalidInput: another kind of URL, or an unknown setting in it.
        MissingExtra: a Weaviate URL without the extra ``weaviate``.
    """
    if url.startswith(_WEAVIATE):
        return _open_weaviate(url, api_key)
    path = url.removeprefix(_SQLITE)
    if path == url or not path:
        raise InvalidInput(
            f"no store has the URL {url!r}",
            place="store (RTM_STORE)",
            remedy="Use sqlite:///path/to/memory.db, sqlite:///:memory: or weaviate://host:8080?grpc=50051.",
        )
    from rag_tuned_memory.store.sqlite import SqliteStore

    return SqliteStore(path, busy_timeout=busy_timeout, max_bytes=max_bytes)


def _open_weaviate(url: str, api_key: str | None) -> EpisodeStore:
    for module in ("weaviate", "snowballstemmer", "tenacity"):
        require(module, extra="weaviate")
    from rag_tuned_memory.store.weaviate import WeaviateStore, parse_address

    return WeaviateStore(parse_address(url), api_key=api_key)
