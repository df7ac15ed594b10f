"""huggingface_hub's client of a TGI server, over a transport of our own.

The hub's ``AsyncInferenceClient`` builds the requests and reads the answers and error events. Sending is done here,
because its own transport (seen in 2.4.0) leaves a stream open when its reader is cancelled, splits lines at U+2028 and
U+0085 inside of a token's text, sends the token that the user has for huggingface.co to any server, refuses all servers
under ``HF_HUB_OFFLINE``, asks again without the ``adapter_id`` after some errors, and takes 35 ms to be made.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import anyio
import httpx
from huggingface_hub import AsyncInferenceClient, TextGenerationOutput, TextGenerationStreamOutput

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.tgi.failures import cut, protocol_error, refusal, translated
from rag_tuned_memory.serving.tgi.limits import Patience, TimeLimits

_LONGEST_LINE = 4 << 20
"""Bytes of one event or error; more is no TGI server."""
_GRACE = 1.0
"""Seconds to close a connection, or to read a stream's end after its last event so that its connection can be kept."""


class TgiClient:
    """Sends requests to the server at ``url``, and lets no other exceptions out than this package's.

    Raises:
        InvalidInput: no http(s) URL, or a key that no header can carry.
    """

    def __init__(self, url: str, api_key: str | None, limits: TimeLimits) -> None:
        self.url = _parsed(url)
        self.place = str(self.url.copy_with(userinfo=b""))
        self.limits = limits
        self.patience = Patience(self.place)
        self._http = httpx.AsyncClient(
            headers=_headers(api_key),
            # Time is limited by ``Patience``; for reading that is the time between tokens, not between bytes.
            timeout=httpx.Timeout(None, connect=limits.connect),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=60.0),
            # The connection that tells a restart (``witness``) goes to the server itself, so everything must.
            trust_env=False,
            # Loading the certificates takes 40 ms, and no certificate is ever looked at without TLS.
            verify=ssl.create_default_context() if self.url.scheme == "https" else False,
        )

    async def complete(self, prompt: str, seconds: float, **parameters: Any) -> TextGenerationOutput:
        """A whole answer with its details, within ``seconds``; ``parameters`` as of ``AsyncInferenceClient``.

        Works on asyncio only: so does the hub's client.

        Raises:
            InvalidInput, PromptTooLong, BackendError, BackendUnavailable: see ``errors``.
        """
        exchange = Exchange(self.place, self._http)
        try:
            with translated(self.place):
                answer = await self.patience.wait(
                    lambda: exchange.text_generation(prompt, details=True, return_full_text=False, **parameters),
                    seconds,
                    "the answer",
                )
        finally:
            await _close(exchange)
        if not isinstance(answer, TextGenerationOutput) or answer.details is None:
            raise protocol_error("an answer without details", self.place)
        return answer

    async def begin(self, prompt: str, seconds: float, **parameters: Any) -> TokenStream:
        """As ``complete``, but a stream, once its first token is there. It is to be closed."""
        exchange = Exchange(self.place, self._http)
        try:
            with translated(self.place):
                return await self.patience.wait(
                    lambda: _first(exchange, self.patience, prompt, parameters), seconds, "the first token"
                )
        except BaseException:
            await _close(exchange)
            raise

    async def get(self, path: str) -> httpx.Response:
        """What the server says of itself at ``path``, whatever the status.

        Raises:
            BackendUnavailable: it does not answer in time.
        """
        return await self._probe("GET", path, None)

    async def post(self, path: str, body: Any) -> httpx.Response:
        """As ``get``, for a question with a body."""
        return await self._probe("POST", path, body)

    async def _probe(self, method: str, path: str, body: Any) -> httpx.Response:
        address = self.place.rstrip("/") + path
        with translated(self.place):
            return await self.patience.wait(
                lambda: self._http.request(method, address, json=body), self.limits.probe, f"an answer from {path}"
            )

    async def close(self) -> None:
        """End all requests with BackendUnavailable and close the connections."""
        self.patience.close()
        await self._http.aclose()


class TokenStream:
    """The events of one answer, one a token. ``last`` says whether the server has said that it is done."""

    def __init__(
        self,
        exchange: Exchange,
        patience: Patience,
        events: AsyncIterator[TextGenerationStreamOutput],
        first: TextGenerationStreamOutput,
    ) -> None:
        self.current = first
        self._exchange = exchange
        self._patience = patience
        self._events = events
        self._tokens = 1

    @property
    def last(self) -> bool:
        """Whether ``current`` is the last event."""
        return self.current.details is not None or self.current.generated_text is not None

    async def advance(self, seconds: float) -> None:
        """Wait at most ``seconds`` for the next token.

        Raises:
            BackendUnavailable, BackendError: the connection was cut, the server failed or hangs.
        """
        with translated(self._exchange.place):
            self.current = await self._patience.wait(self._next, seconds, "the next token")
        self._tokens += 1

    async def _next(self) -> TextGenerationStreamOutput:
        async for event in self._events:
            return event
        raise cut(self._exchange.place, self._tokens)

    async def close(self) -> None:
        """Free the connection: for the next request where the answer is complete, else the server sees it closed."""
        try:
            if self.last:
                with contextlib.suppress(Exception), anyio.move_on_after(_GRACE):
                    async for _ in self._events:
                        pass
        finally:
            await _close(self._exchange)


class Exchange(AsyncInferenceClient):
    """One request and its answer over a given HTTP client; closing it closes the answer."""

    def __init__(self, place: str, http: httpx.AsyncClient) -> None:
        # Without a key the hub's client looks for the user's own; the real one is in ``http``'s headers.
        super().__init__(base_url=place, provider="hf-inference", api_key="unused")
        self.place = place
        self._http = http

    async def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
        request = self._http.build_request("POST", request_parameters.url, json=request_parameters.json)
        response = await self._http.send(request, stream=True)
        self.exit_stack.push_async_callback(response.aclose)
        if response.status_code != 200:
            raise refusal(response.status_code, await _read(response), self.place)
        if not stream:
            return await response.aread()
        if (kind := response.headers.get("content-type", "")).partition(";")[0].strip() != "text/event-stream":
            raise protocol_error(f"a stream was asked for, {kind or 'something without content type'} came", self.place)
        lines = _lines(response)
        self.exit_stack.push_async_callback(lines.aclose)
        return lines


async def _first(exchange: Exchange, patience: Patience, prompt: str, parameters: dict[str, Any]) -> TokenStream:
    events = await exchange.text_generation(prompt, details=True, return_full_text=False, stream=True, **parameters)
    iterator = aiter(events)
    async for event in iterator:
        return TokenStream(exchange, patience, iterator, event)
    raise cut(exchange.place, 0)


async def _lines(response: httpx.Response) -> AsyncGenerator[str, None]:
    """The lines of a stream of events, which end with a line feed and nothing else. One without end is not given."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode()
        if len(rest) > _LONGEST_LINE:
            raise ValueError("an event without end")


async def _read(response: httpx.Response) -> bytes:
    """The beginning of an error's body."""
    body = b""
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > _LONGEST_LINE:
            break
    return body


async def _close(exchange: Exchange) -> None:
    # A cancelled task must still close its connection: that is how the server learns to stop.
    with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _GRACE):
        # The answer, or the error that is on its way, counts more than a socket that will not close.
        with contextlib.suppress(Exception):
            await exchange.exit_stack.aclose()


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise InvalidInput(f"{url!r} is no URL: {error}", remedy=_EXAMPLE) from error
    whole = parsed.scheme in ("http", "https") and parsed.host and not parsed.query and not parsed.fragment
    if not whole or not 0 < (parsed.port or 80) < 65536:
        raise InvalidInput(f"{url!r} is not the URL of a server", remedy=_EXAMPLE)
    return parsed.copy_with(path=parsed.path.rstrip("/") + "/")


_EXAMPLE = "It looks like http://localhost:8080."


def _headers(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not api_key or not (api_key.isascii() and api_key.isprintable()):
        raise InvalidInput("the API key must be printable ASCII characters")
    return {"Authorization": f"Bearer {api_key}"}
