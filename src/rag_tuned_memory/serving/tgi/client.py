"""Requests to a TGI server: whole answers, streams, and questions about the server itself.

Plain HTTP, and not huggingface_hub's ``AsyncInferenceClient``, whose requests these are (a test compares them). Seen in
its version 2.4.0: a token's text with U+2028 or U+0085 breaks a stream; the user's token for huggingface.co goes to any
server; ``HF_HUB_OFFLINE`` forbids all servers; an error that calls the ``adapter_id`` unused makes it ask again without
it, hundreds of times; a new client, without which no stream can be closed by itself, takes 35 ms; and reading a token
costs more (``benchmarks/tgi_client_overhead``).
"""

from __future__ import annotations

import contextlib
import ssl
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import httpx

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.tgi.failures import cut, protocol_error, refusal, translated
from rag_tuned_memory.serving.tgi.limits import Patience, TimeLimits
from rag_tuned_memory.serving.tgi.wire import Event, Whole, read_event, read_whole

_LONGEST_LINE = 4 << 20
"""Bytes of one event or error; more is no TGI server."""
_GRACE = 1.0
"""Seconds to close a connection, or to read a stream's end after its last event so that its connection can be kept."""
_EXAMPLE = "It looks like http://localhost:8080."


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

    async def complete(self, prompt: str, parameters: dict[str, Any], seconds: float) -> Whole:
        """A whole answer with its details, within ``seconds``.

        Raises:
            InvalidInput, PromptTooLong, BackendError, BackendUnavailable: see ``errors``.
        """

        async def ask() -> bytes:
            response = await self._sent(prompt, parameters, stream=False)
            try:
                return await response.aread()
            finally:
                await _close(response)

        with translated(self.place):
            return read_whole(await self.patience.wait(ask, seconds, "the answer"), self.place)

    async def begin(self, prompt: str, parameters: dict[str, Any], seconds: float) -> TokenStream:
        """As ``complete``, but a stream, once its first token is there. It is to be closed."""

        async def ask() -> TokenStream:
            response = await self._sent(prompt, parameters, stream=True)
            try:
                kind = response.headers.get("content-type", "")
                if kind.partition(";")[0].strip() != "text/event-stream":
                    raise protocol_error(f"a stream was asked for, {kind or 'nothing named'} came", self.place)
                stream = TokenStream(response, self.patience, self.place)
                await stream.first()
            except BaseException:
                await _close(response)
                raise
            return stream

        with translated(self.place):
            return await self.patience.wait(ask, seconds, "the first token")

    async def get(self, path: str) -> httpx.Response:
        """What the server says of itself at ``path``, whatever the status. Raises BackendUnavailable."""
        return await self._probe("GET", path, None)

    async def post(self, path: str, body: Any) -> httpx.Response:
        """As ``get``, for a question with a body."""
        return await self._probe("POST", path, body)

    async def close(self) -> None:
        """End all requests with BackendUnavailable and close the connections."""
        self.patience.close()
        await self._http.aclose()

    async def _sent(self, prompt: str, parameters: dict[str, Any], *, stream: bool) -> httpx.Response:
        """The answer to a request for text, of which only the headers were read: status 200."""
        given = {key: value for key, value in parameters.items() if value is not None}
        # ``/`` gives the prompt back before the answer unless it is told not to.
        body = {"inputs": prompt, "parameters": {**given, "details": True, "return_full_text": False}}
        request = self._http.build_request("POST", self.url, json={**body, "stream": True} if stream else body)
        response = await self._http.send(request, stream=True)
        if response.status_code == 200:
            return response
        try:
            raise refusal(response.status_code, await _beginning(response), self.place)
        finally:
            await _close(response)

    async def _probe(self, method: str, path: str, body: Any) -> httpx.Response:
        address = self.url.copy_with(path=self.url.path.rstrip("/") + path)
        with translated(self.place):
            return await self.patience.wait(
                lambda: self._http.request(method, address, json=body), self.limits.probe, f"an answer from {path}"
            )


class TokenStream:
    """The events of one answer, one a token; ``current`` is the latest."""

    current: Event

    def __init__(self, response: httpx.Response, patience: Patience, place: str) -> None:
        self._response = response
        self._patience = patience
        self._place = place
        self._arrivals = _arrivals(response)
        self._waiting: deque[bytes] = deque()
        self._tokens = 0

    async def advance(self, seconds: float) -> None:
        """Wait at most ``seconds`` for the next token.

        Raises:
            BackendUnavailable, BackendError: the connection was cut, the server failed or hangs.
        """
        if not self._waiting:
            with translated(self._place):
                await self._patience.wait(self._arrive, seconds, "the next token")
        self._take()

    async def first(self) -> None:
        """Wait for the first token, as long as it takes."""
        await self._arrive()
        self._take()

    async def _arrive(self) -> None:
        async for events in self._arrivals:
            if events:
                self._waiting.extend(events)
                return
        raise cut(self._place, self._tokens)

    def _take(self) -> None:
        self.current = read_event(self._waiting.popleft(), self._place)
        self._tokens += 1

    async def close(self) -> None:
        """Free the connection: for the next request where the answer is complete, else the server sees it closed."""
        try:
            if self.current.last:
                with contextlib.suppress(Exception), anyio.move_on_after(_GRACE):
                    async for _ in self._arrivals:
                        pass
        finally:
            await _close(self._response, self._arrivals)


async def _arrivals(response: httpx.Response) -> AsyncGenerator[list[bytes], None]:
    """What comes at a time: events, each what stands after ``data:`` in its only line. A line without end is not given.

    Lines end with a line feed only: httpx's own lines end at U+2028 too, which a token may hold.
    """
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        yield [line[5:] for line in lines if line.startswith(b"data:")]
        if len(rest) > _LONGEST_LINE:
            raise httpx.DecodingError("an event without end")


async def _beginning(response: httpx.Response) -> bytes:
    """Of an error's body, as much as may be a message."""
    body = b""
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > _LONGEST_LINE:
            break
    return body


async def _close(response: httpx.Response, arrivals: AsyncGenerator[list[bytes], None] | None = None) -> None:
    # A cancelled task must still close its connection: that is how the server learns to stop. The answer, or the error
    # that is on its way, counts more than a socket that will not close.
    with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _GRACE), contextlib.suppress(Exception):
        if arrivals:
            await arrivals.aclose()
        await response.aclose()


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise InvalidInput(f"{url!r} is no URL: {error}", remedy=_EXAMPLE) from error
    whole = parsed.scheme in ("http", "https") and parsed.host and not parsed.query and not parsed.fragment
    if not whole or not 0 < (parsed.port or 80) < 65536:
        raise InvalidInput(f"{url!r} is not the URL of a server", remedy=_EXAMPLE)
    return parsed.copy_with(path=parsed.path.rstrip("/") + "/")


def _headers(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not api_key or not (api_key.isascii() and api_key.isprintable()):
        raise InvalidInput("the API key must be printable ASCII characters")
    return {"Authorization": f"Bearer {api_key}"}
