"""``BlueGreen``: an InferenceBackend over a server that loads adapters only when it starts.

A new adapter means a new server: it is started beside the one that answers, every adapter is proven on it, then it
takes over, the old one finishes what it had begun, and is stopped. Whatever fails before that leaves the old one as it
was. Each step is written down before it is taken, so that after a crash the next supervisor knows which servers run.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
from filelock import FileLock, Timeout

from rag_tuned_memory.errors import (
    AdapterNotLoaded,
    BackendError,
    BackendUnavailable,
    InvalidInput,
    RagTunedMemoryError,
)
from rag_tuned_memory.serving.base import Chunk, Fingerprint, Generation, InferenceBackend, Request
from rag_tuned_memory.serving.health import Health
from rag_tuned_memory.serving.rollout.launch import Launcher, Server
from rag_tuned_memory.serving.rollout.state import Adapter, RolloutState

T = TypeVar("T")
_LOOK_EVERY = 0.2
_STARTS = 3
"""Servers that are started for one request after the one before died."""


class ServerClient(InferenceBackend, Protocol):
    """What asks one server: ``TgiBackend``."""

    async def health(self) -> Health:
        """Whether it can answer now."""
        ...


class _Live:
    """A server that answers, and how many requests are on their way to it."""

    def __init__(self, server: Server, client: ServerClient) -> None:
        self.server, self.client = server, client
        self._running = 0
        self._idle: anyio.Event | None = None

    @contextmanager
    def busy(self) -> Iterator[None]:
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running and self._idle:
                self._idle.set()

    async def drained(self, seconds: float) -> None:
        """Return when nothing is on its way to it any more, or the time is over."""
        if self._running:
            self._idle = anyio.Event()
            with anyio.move_on_after(seconds):
                await self._idle.wait()


class BlueGreen:
    """Supervises one server at a time, and asks it.

    The servers live longer than this process: the next supervisor of the same ``folder`` takes over the one that runs.
    Only one process at a time may supervise a folder. To be used from one event loop.

    Args:
        launcher: starts and stops servers.
        connect: makes a client of the server at a URL, such as ``lambda url: TgiBackend(url, model_folder)``.
        folder: keeps the state of the rollout.
        base_model: the identity of the model that the servers serve.
        start_seconds: how long a server may take until it is ready.
        drain_seconds: how long one that was replaced may take to finish what it had begun.
    """

    def __init__(
        self,
        launcher: Launcher,
        connect: Callable[[str], ServerClient],
        folder: Path,
        *,
        base_model: str,
        start_seconds: float = 600.0,
        drain_seconds: float = 90.0,
    ) -> None:
        if not 0 < start_seconds < math.inf or not 0 <= drain_seconds < math.inf:
            raise InvalidInput("start_seconds and drain_seconds must be finite numbers of seconds")
        self._launcher, self._connect, self._folder = launcher, connect, Path(folder)
        self._base_model = base_model
        self._start_seconds, self._drain_seconds = start_seconds, drain_seconds
        self._lock = anyio.Lock()
        self._only: FileLock | None = None
        self._state = RolloutState()
        self._live: _Live | None = None
        self._held: set[str] = set()
        self._closed = False

    @property
    def base_model(self) -> str:
        """The identity that was given."""
        return self._base_model

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answers of the server that is current when they are asked; a server that died is started again first.

        Raises:
            AdapterNotLoaded, BackendUnavailable, BackendError: see ``errors``.
        """
        return await self._asked(requests, lambda client: client.generate(requests))

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """As ``InferenceBackend.stream``; a server that is replaced meanwhile finishes the stream."""
        async with aclosing(self._chunks(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def score(self, request: Request, completions: Sequence[str]) -> list[tuple[float, ...]]:
        """As ``InferenceBackend.score``, where the server can score."""
        return await self._asked([request], lambda client: client.score(request, completions))

    async def load_adapter(self, name: str, path: Path, fingerprint: Fingerprint | None = None) -> None:
        """Start a server that serves this adapter too, prove all adapters on it, and let it take over.

        Returns when the old server has finished what it had begun and was stopped.

        Raises:
            InvalidInput: the name is in use, or there is no fingerprint to prove it by.
            CanaryMismatch: the new server answers otherwise; it was stopped, and the old one goes on.
            BackendError, BackendUnavailable: it could not be started, or was not ready in time; likewise.
        """
        if fingerprint is None:
            raise InvalidInput(
                f"adapter {name!r} has no fingerprint, so nothing proves that the new server serves it",
                remedy="Give the fingerprint of its manifest; `rtm distil` makes one.",
            )
        await self._current()
        async with self._lock:
            if name in self._held:
                raise InvalidInput(f"an adapter named {name!r} is already loaded", remedy="Use a new version's name.")
            absolute = Path(await anyio.Path(path).absolute())
            adapters = self._kept() | {name: Adapter(path=absolute, fingerprint=fingerprint)}
            old = self._live
            await self._take_over(adapters)
        if old is not None:
            await self._retire(old)

    async def unload_adapter(self, name: str) -> None:
        """Refuse new requests for the adapter from now on; the next server is started without it.

        Raises AdapterNotLoaded.
        """
        await self._current()
        self._check(name)
        self._held.discard(name)
        async with self._lock:
            await self._save(adapters=self._kept())
            if self._live is not None:
                with contextlib.suppress(AdapterNotLoaded):
                    await self._live.client.unload_adapter(name)

    async def adapters(self) -> list[str]:
        """Names of the adapters that may be asked for, sorted."""
        await self._current()
        return sorted(self._held)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """By the client's tokenizer."""
        return await (await self._current()).client.count_tokens(texts)

    async def close(self, *, stop: bool = False) -> None:
        """Stop supervising. The server goes on running for the next supervisor, unless ``stop``."""
        self._closed = True
        live, self._live = self._live, None
        if live is not None:
            await live.client.close()
            if stop:
                await self._launcher.stop(live.server)
                await self._save(current=None)
        if self._only is not None:
            await anyio.to_thread.run_sync(self._only.release)

    async def _asked(self, requests: Sequence[Request], ask: Callable[[ServerClient], Awaitable[T]]) -> T:
        last: BackendUnavailable | None = None
        for _ in range(_STARTS):
            live = await self._current()
            for request in requests:
                self._check(request.adapter)
            try:
                with live.busy():
                    return await ask(live.client)
            except BackendUnavailable as error:
                last = error
                if not await self._lost(live):
                    raise
        assert last is not None
        raise last

    async def _chunks(self, request: Request) -> AsyncGenerator[Chunk, None]:
        last: BackendUnavailable | None = None
        for _ in range(_STARTS):
            live = await self._current()
            self._check(request.adapter)
            given = False
            try:
                with live.busy():
                    async for chunk in live.client.stream(request):
                        given = True
                        yield chunk
                return
            except BackendUnavailable as error:
                last = error
                if given or not await self._lost(live):
                    raise
        assert last is not None
        raise last

    def _check(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self._held:
            loaded = ", ".join(sorted(self._held)) or "none"
            raise AdapterNotLoaded(f"no adapter {adapter!r} is loaded (loaded: {loaded})", remedy="Load it first.")

    async def _lost(self, live: _Live) -> bool:
        """Whether the server is not the current one any more, so that asking again may help."""
        if self._live is live and not await self._launcher.alive(live.server):
            async with self._lock:
                if self._live is live:
                    self._live = None
                    await live.client.close()
        return self._live is not live

    async def _current(self) -> _Live:
        """The server that answers; one of an earlier supervisor is taken over, one that died is started again."""
        if self._closed:
            raise BackendUnavailable("the backend was closed")
        if self._live is not None:
            return self._live
        async with self._lock:
            if self._live is None:
                await self._supervise()
                await self._recover()
            assert self._live is not None
            return self._live

    async def _supervise(self) -> None:
        """Be the only one that does."""
        if self._only is not None:
            return
        only = FileLock(self._folder / "supervisor.lock", thread_local=False)

        def acquire() -> None:
            self._folder.mkdir(parents=True, exist_ok=True)
            only.acquire(timeout=0)

        try:
            await anyio.to_thread.run_sync(acquire)
        except Timeout as error:
            raise BackendUnavailable(
                "another process supervises this server", place=str(self._folder), remedy="Ask that one, or end it."
            ) from error
        self._only = only
        self._state = await anyio.to_thread.run_sync(RolloutState.load, self._folder)

    async def _recover(self) -> None:
        """Go on where the supervisor before stopped: what was on its way in or out is ended."""
        current = self._state.current
        strays = await self._launcher.strays([current] if current else [])
        for server in [self._state.coming, *self._state.leaving, *strays]:
            if server is not None:
                await self._launcher.stop(server)
        await self._save(coming=None, leaving=())
        if current is not None and await self._launcher.alive(current):
            try:
                await self._adopt(current, self._state.adapters)
            except RagTunedMemoryError:  # hung, or not what it should be: a new one answers
                await self._launcher.stop(current)
            else:
                return
        await self._take_over(self._state.adapters)

    async def _take_over(self, adapters: Mapping[str, Adapter]) -> None:
        """Start a server with these adapters, prove it, and let it answer. Where that fails, it is stopped."""
        server = await self._launcher.start({name: one.path for name, one in adapters.items()})
        try:
            await self._save(coming=server)
            await self._adopt(server, adapters)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                if isinstance(error, BackendUnavailable):
                    error.message += f"; {await self._launcher.why(server)}"
                await self._launcher.stop(server)
                await self._save(coming=None)
            raise

    async def _adopt(self, server: Server, adapters: Mapping[str, Adapter]) -> None:
        """Wait until a server is ready, prove all adapters on it, and let it answer."""
        client = self._connect(server.url)
        try:
            await self._ready(server, client)
            for name, one in adapters.items():
                await client.load_adapter(name, one.path, one.fingerprint)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await client.close()
            raise
        with anyio.CancelScope(shield=True):
            before = self._state.current
            gone = () if before is None or before == server else (before,)
            await self._save(
                adapters=dict(adapters), current=server, coming=None, leaving=(*self._state.leaving, *gone)
            )
            self._live, self._held = _Live(server, client), set(adapters)

    async def _ready(self, server: Server, client: ServerClient) -> None:
        until = time.monotonic() + self._start_seconds
        while not (health := await client.health()).ready:
            if not await self._launcher.alive(server):
                raise BackendError(
                    f"the server ended before it was ready; {await self._launcher.why(server)}", place=server.url
                )
            if time.monotonic() > until:
                raise BackendUnavailable(
                    f"the server is not ready after {self._start_seconds:g} s ({health.detail})", place=server.url
                )
            await anyio.sleep(_LOOK_EVERY)

    async def _retire(self, old: _Live) -> None:
        """Let a server that was replaced finish, and stop it."""
        with anyio.CancelScope(shield=True):
            await old.drained(self._drain_seconds)
            await old.client.close()
            await self._launcher.stop(old.server)
            async with self._lock:
                await self._save(leaving=tuple(one for one in self._state.leaving if one != old.server))

    def _kept(self) -> dict[str, Adapter]:
        return {name: one for name, one in self._state.adapters.items() if name in self._held}

    async def _save(self, **changes: Any) -> None:
        self._state = self._state.model_copy(update=changes)
        await anyio.to_thread.run_sync(self._state.save, self._folder)
