"""An endpoint that speaks OpenAI's HTTP API: the ``openai`` client for it, and every failure of it as one of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import anyio

from rag_tuned_memory.errors import BackendError, BackendUnavailable, InvalidInput, PromptTooLong, RagTunedMemoryError
from rag_tuned_memory.models.extras import import_extra

if TYPE_CHECKING:
    import openai

CONNECT_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_MOST_WORDS = 500
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Names:
    """What a user calls the things that a remedy speaks of, where they are set."""

    place: str = "endpoint"
    url: str = "the url"
    key: str = "the API key"
    model: str = "the model's name"
    shorter: str = "Shorten the prompt, e.g. by a lower recall budget, or ask for a shorter answer."
    reply: str = "completion"
    """What a good reply is."""


class Endpoint:
    """The client of one endpoint; ``call`` bounds and translates what is done with it.

    ``key`` is the only credential that is ever sent: without one none is, even where the environment holds a key for
    another endpoint. Retries (of connections, 408, 409, 429 and 5xx; with growing waits and jitter, or as long as the
    server's Retry-After says) are the client's. It belongs to the event loop of its first call; asyncio and trio.

    Raises:
        InvalidInput: ``url`` is no http address.
        MissingExtra: the ``openai`` package is not installed.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        model: str | None,
        extra: str,
        timeout: float,
        max_retries: int,
        names: Names | None = None,
    ) -> None:
        self._names = names or Names()
        self.place = f"{self._names.place} {public(url)}"
        if timeout <= 0 or max_retries < 0:
            raise InvalidInput("timeout must be positive and max_retries not negative", place=self.place)
        self._openai = import_extra("openai", extra=extra)
        self._model, self._timeout = model, timeout
        self.client: openai.AsyncOpenAI = self._openai.AsyncOpenAI(
            base_url=url,
            api_key=key or "no-key",
            timeout=self._openai.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            max_retries=max_retries,
        )

    async def call(self, operation: Callable[[], Awaitable[T]], *, seconds: float | None = None) -> T:
        """What ``operation`` returns. It uses ``client`` and reads the reply; ``seconds`` bounds it, retries included.

        Raises:
            BackendUnavailable: no connection, a time limit, too many requests, or a failing server, after the retries.
            PromptTooLong: the endpoint says that the prompt does not fit.
            BackendError: anything else that it refuses (key, model name), or a reply in another form.
            InvalidInput: what was to be sent is no valid UTF-8.
        """
        limit = self._timeout if seconds is None else seconds
        try:
            with anyio.fail_after(limit):
                return await operation()
        except RagTunedMemoryError:
            raise
        except self._openai.OpenAIError as error:
            raise self._ours(error) from error
        except TimeoutError as error:
            raise BackendUnavailable(
                f"no answer within {limit:g} seconds",
                place=self.place,
                remedy="It hangs or is overloaded: look at its log, or allow more time.",
            ) from error
        except UnicodeEncodeError as error:
            raise InvalidInput(f"the text cannot be encoded as UTF-8: {error}") from error
        # The client checks no reply's form.
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise BackendError(
                f"the reply is no {self._names.reply}",
                place=self.place,
                remedy=f"{_sentence(self._names.url)} must be the API's root, which mostly ends in /v1.",
            ) from error
        except Exception as error:  # of the transport below it, in the middle of a stream
            raise self._unavailable(error) from error

    async def close(self) -> None:
        """Close the connections; what still runs on them fails."""
        await self.client.close()

    def _unavailable(self, error: Exception) -> BackendUnavailable:
        reason = str(error.__cause__ or error) or type(error).__name__
        return BackendUnavailable(
            f"no connection, or it was cut: {reason}",
            place=self.place,
            remedy=f"Check that it runs, and {self._names.url}.",
        )

    def _ours(self, error: Exception) -> BackendError:
        names, openai = self._names, self._openai
        if isinstance(error, openai.APIConnectionError):  # also of its own time limits
            return self._unavailable(error)
        status, said = _answer(error)
        words = said.lower()
        if status == 413 or (status in (400, 422) and ("context" in words or "max_model_len" in words)):
            return PromptTooLong(said, place=self.place, remedy=names.shorter)
        if status in (401, 403):
            return BackendError(f"it refused the key ({status})", place=self.place, remedy=f"Set {names.key}.")
        if status == 404:
            message = f"it knows no model {self._model!r}, or the address is wrong ({said})"
            return BackendError(message, place=self.place, remedy=f"Check {names.model} and {names.url}.")
        if status in (408, 409, 429) or status >= 500:
            return BackendUnavailable(f"it failed with {said}", place=self.place, remedy="Try again later.")
        return BackendError(f"it refused the request: {said}", place=self.place)


async def end_stream(stream: openai.AsyncStream[Any]) -> None:
    """Close a stream's connection, also when the task is being cancelled."""
    with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
        await stream.close()
        # Reading on ends the client's generators now, and not whenever and in whichever thread they are collected.
        with contextlib.suppress(Exception):
            await anext(stream, None)


def refusal(error: BackendError) -> tuple[int, str]:
    """HTTP status and words of the answer that an error of ``Endpoint.call`` was made of; (0, "") where none came."""
    cause = error.__cause__
    return _answer(cause) if getattr(cause, "status_code", None) else (0, "")


def public(url: str) -> str:
    """``url`` without user, password and query, which may be secret.

    Raises:
        InvalidInput: it is no http or https address.
    """
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname or ''}:{parts.port}" if parts.port else parts.hostname or ""
    except (AttributeError, TypeError, ValueError):
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidInput("the address must look like http://host:8000/v1", place="url")
    return f"{parts.scheme}://{host}{parts.path}"


def _answer(error: BaseException | None) -> tuple[int, str]:
    """Status and words of an answer; an error inside of a stream carries its status in its body, or counts as 500."""
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    known: Mapping[str, Any] = inner if isinstance(inner, Mapping) else {}
    code, text = known.get("code"), getattr(getattr(error, "response", None), "text", "")
    status = getattr(error, "status_code", None) or (code if isinstance(code, int) else 500)
    said = known.get("message") or text or inner or error
    return status, str(said)[:_MOST_WORDS]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
