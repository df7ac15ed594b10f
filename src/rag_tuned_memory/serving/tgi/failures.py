"""Turns what a TGI server and the libraries in between report into this package's errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from rag_tuned_memory.errors import (
    BackendError,
    BackendOverloaded,
    BackendUnavailable,
    InvalidInput,
    PromptTooLong,
    RagTunedMemoryError,
)

NOT_THERE = "Check that it runs and that this is its address; while a TGI server starts, its port is closed."
_SHORTEN = (
    "Shorten the prompt or ask for fewer new tokens; the server's limits are its MAX_INPUT_TOKENS and MAX_TOTAL_TOKENS."
)
_TOO_LONG = re.compile(r"`inputs` (tokens \+ `max_new_tokens` must be|must have less than)")
_SHARD_GONE = re.compile(r"transport error|trying to connect|tcp connect|CANCELLED|connection \w+|broken pipe", re.I)
_BY_STATUS = {400: "validation", 413: "too_large", 422: "validation", 424: "generation", 429: "overloaded"}


def refusal(status: int, body: bytes, place: str) -> RagTunedMemoryError:
    """The error that an HTTP answer other than 200 means. Bodies are JSON, plain text or empty."""
    message, kind = _read(body)
    if status in (401, 403):
        return BackendError(
            "the API key is missing or wrong",
            place=place,
            remedy="Give api_key the key that the server was started with (its API_KEY).",
        )
    if status in (404, 405) or 300 <= status < 400:
        return BackendError(
            f"it answers {status}: no text-generation-inference server",
            place=place,
            remedy="Check the URL: it is the server's root, without /generate or /v1.",
        )
    if status in (502, 503, 504):
        return BackendUnavailable(f"the server is not ready ({status}: {message or 'no reason given'})", place=place)
    return meaning(kind or _BY_STATUS.get(status, ""), message or f"status {status}", place)


def meaning(kind: str, message: str, place: str) -> RagTunedMemoryError:
    """The error that TGI's ``error_type`` and ``error`` mean, wherever they came from."""
    message = _short(message)
    if kind == "too_large":
        return PromptTooLong(f"the request is too large for the server ({message})", place=place, remedy=_SHORTEN)
    if kind == "validation":
        if _TOO_LONG.search(message):
            return PromptTooLong(message, place=place, remedy=_SHORTEN)
        return InvalidInput(f"the server refuses the request: {message}", place=place)
    if kind == "overloaded":
        return BackendOverloaded(
            "the server is overloaded",
            place=place,
            remedy="Try again later, send fewer requests at once, or start another replica.",
        )
    if kind == "incomplete_generation" or (kind == "generation" and _SHARD_GONE.search(message)):
        return BackendUnavailable(f"the server failed while it generated: {message}", place=place)
    if kind == "generation":
        return BackendError(
            f"the server failed while it generated: {message}",
            place=place,
            remedy="Its log says why; a grammar that it cannot compile, or an adapter of another shape, does this.",
        )
    return BackendError(f"the server failed: {message}", place=place)


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Lets no exception of httpx out. ``place`` is the server's URL."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise BackendUnavailable(
            f"no connection to the server ({_short(str(error)) or type(error).__name__})",
            place=place,
            remedy=NOT_THERE,
        ) from error
    except (httpx.TransportError, httpx.StreamError) as error:
        raise BackendUnavailable(
            f"the connection to the server was cut ({_short(str(error)) or type(error).__name__})", place=place
        ) from error
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the request cannot be encoded as UTF-8: {error}") from error
    except httpx.HTTPError as error:
        raise protocol_error(f"{type(error).__name__}: {error}", place) from error


def protocol_error(reason: str, place: str) -> BackendError:
    """The server answered something that TGI does not."""
    return BackendError(
        f"the server does not speak text-generation-inference's protocol ({_short(reason)})",
        place=place,
        remedy="Check the URL, and what stands between (a proxy, a gateway).",
    )


def cut(place: str, tokens: int) -> BackendUnavailable:
    """A stream ended without its last event."""
    return BackendUnavailable(f"the server cut the answer after {tokens} tokens", place=place)


def _read(body: bytes) -> tuple[str, str]:
    """Message and ``error_type`` of an error's body; the latter is empty for plain text."""
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return _short(text), ""
    if not isinstance(found, dict):
        return _short(text), ""
    return _short(str(found.get("error", text))), str(found.get("error_type") or "")


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
