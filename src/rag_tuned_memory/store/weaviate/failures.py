"""Turns what Weaviate and its client report into this package's errors, each with the server and a remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from weaviate.exceptions import (
    AuthenticationFailedError,
    InsufficientPermissionsError,
    UnexpectedStatusCodeError,
    WeaviateBaseError,
    WeaviateClosedClientError,
    WeaviateConnectionError,
    WeaviateStartUpError,
    WeaviateTimeoutError,
)

from rag_tuned_memory.errors import RagTunedMemoryError, StoreError, StoreFull, StoreUnavailable

WRITABLE = "Free space on its disk or raise DISK_USE_READONLY_PERCENTAGE, then set the shards to READY."
_NOTHING_YET = re.compile(r"tenant not found|could not find class|(class|collection)\b.{0,200}\bnot found")
_RETRIED = (
    "unavailable",
    "connection refused",
    "connection reset",
    "failed to connect",
    "socket closed",
    "deadline exceeded",
    "too many requests",
    "leader",
    "rpc error",
    "broadcast",
    "cannot reach consistency level",
    "shutting down",
    "not ready",
    "non-existing index",
    "no answer",
)


def no_tenant(error: BaseException) -> bool:
    """Whether a call failed because the namespace holds nothing yet, or its collection does not exist."""
    return _NOTHING_YET.search(str(error).lower()) is not None


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed when it is tried again. All calls are idempotent."""
    if isinstance(error, RagTunedMemoryError | AuthenticationFailedError | InsufficientPermissionsError):
        return isinstance(error, StoreUnavailable)
    if isinstance(error, httpx.TransportError | WeaviateConnectionError | WeaviateStartUpError | WeaviateTimeoutError):
        return True
    if isinstance(error, UnexpectedStatusCodeError) and error.status_code in (429, 502, 503, 504):
        return True
    return isinstance(error, WeaviateBaseError) and any(sign in str(error).lower() for sign in _RETRIED)


def translate(error: BaseException, place: str) -> RagTunedMemoryError:
    """The error of this package that says what ``error`` means for the server at ``place``."""
    if isinstance(error, RagTunedMemoryError):
        return error
    text = str(error)
    low = text.lower()
    if _is_refused(error, low):
        return StoreError(
            f"the server refuses the API key ({_short(text)})",
            place=place,
            remedy="Set RTM_WEAVIATE_API_KEY to a key that may read and write.",
        )
    if "read-only" in low or "readonly" in low or "read only" in low:
        return StoreFull(
            "the server's disk is nearly full: it takes no writes",
            place=place,
            remedy=WRITABLE,
        )
    if "async indexing" in low:
        return StoreError(
            "the server makes no dynamic index without asynchronous indexing",
            place=place,
            remedy="Start it with ASYNC_INDEXING=true, or choose another: ?index=flat, ?index=hnsw.",
        )
    if is_transient(error) or isinstance(error, WeaviateClosedClientError | TimeoutError):
        return StoreUnavailable(
            f"the server cannot be reached, or does not answer in time ({_short(text) or type(error).__name__})",
            place=place,
            remedy="Start it, or check host, ports and network; what was acknowledged before is kept.",
        )
    return StoreError(f"Weaviate reports: {_short(text)}", place=place, remedy="Run `rtm doctor` to check the store.")


def _is_refused(error: BaseException, text: str) -> bool:
    if isinstance(error, AuthenticationFailedError | InsufficientPermissionsError):
        return True
    if isinstance(error, UnexpectedStatusCodeError):
        return error.status_code in (401, 403)
    return "unauthenticated" in text or "unauthorized" in text or "forbidden" in text


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:300]} …"


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Raise errors of this package where the block raises errors of the client or runs out of time."""
    try:
        yield
    except (WeaviateBaseError, httpx.HTTPError, TimeoutError, OSError) as error:
        raise translate(error, place) from error
