"""``Fleet``: several replicas of one server as one InferenceBackend."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import anyio

from rag_tuned_memory.errors import (
    AdapterError,
    AdapterNotLoaded,
    BackendError,
    BackendUnavailable,
    InvalidInput,
    RagTunedMemoryError,
)
from rag_tuned_memory.serving.base import Chunk, Fingerprint, Generation, InferenceBackend, Request
from rag_tuned_memory.serving.breaker import Breaker
from rag_tuned_memory.serving.together import together

T = TypeVar("T")


@dataclass(eq=False)
class _Replica:
    """One server. ``holds`` are the adapters that were proven on it, ``refused`` those that cannot be."""

    backend: InferenceBackend
    holds: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    running: int = 0
    breaker: Breaker = field(default_factory=Breaker)
    mending: bool = False

    @contextmanager
    def busy(self) -> Iterator[None]:
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


@dataclass
class _Attempts:
    """The tries of one request. ``over`` are replicas that are not asked again."""

    adapter: str | None
    over: set[_Replica] = field(default_factory=set)
    last: RagTunedMemoryError | None = None
    _emptied: set[_Replica] = field(default_factory=set)

    def failed(self, replica: _Replica, error: BackendUnavailable | AdapterNotLoaded) -> None:
        """One that lost the adapter (it was restarted) is mended and asked once more."""
        self.last = error
        if isinstance(error, BackendUnavailable):
            replica.breaker.failed()
            self.over.add(replica)
            return
        replica.holds.discard(self.adapter or "")
        if replica in self._emptied:
            self.over.add(replica)
        self._emptied.add(replica)


@dataclass(frozen=True, slots=True)
class _Adapter:
    path: Path
    fingerprint: Fingerprint | None


class Fleet:
    """Asks the least busy of the replicas that can answer, and another one where it fails.

    An adapter is loaded and proven on every replica that can be reached, and asked for only where it was. A replica
    that fails is left alone for a while (see ``Breaker``); when it is back, possibly restarted and empty, the adapters
    that it lacks are loaded and proven again before it gets requests for them. A request goes to another replica only
    when no part of its answer was given yet, so that nothing is answered twice.

    To be used from one event loop, as its replicas. ``close`` closes them.

    Raises:
        InvalidInput: no replicas, or replicas of different base models.
    """

    def __init__(self, replicas: Sequence[InferenceBackend]) -> None:
        models = {one.base_model for one in replicas}
        if len(models) != 1:
            raise InvalidInput(
                f"a fleet needs replicas of one base model, not of {', '.join(sorted(models)) or 'none'}",
                remedy="Name servers that serve the same model.",
            )
        self._base_model = models.pop()
        self._replicas = [_Replica(one) for one in replicas]
        self._adapters: dict[str, _Adapter] = {}
        self._loading: set[str] = set()

    @property
    def base_model(self) -> str:
        """The replicas' base model."""
        return self._base_model

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answers in the order of the requests, each from the replica that is least busy when its turn comes.

        Raises:
            BackendUnavailable: no replica could answer. AdapterNotLoaded, PromptTooLong, InvalidInput: see ``errors``.
        """

        async def one(request: Request) -> Generation:
            return (await self._anywhere(request.adapter, lambda backend: backend.generate([request])))[0]

        return await together(one, requests)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """As ``InferenceBackend.stream``; another replica takes over only before the first chunk."""
        async with aclosing(self._chunks(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def score(self, request: Request, completions: Sequence[str]) -> list[tuple[float, ...]]:
        """As ``InferenceBackend.score``, on one replica."""
        return await self._anywhere(request.adapter, lambda backend: backend.score(request, completions))

    async def load_adapter(self, name: str, path: Path, fingerprint: Fingerprint | None = None) -> None:
        """Load and prove an adapter on every replica that can be reached; the others get it when they are back.

        Raises:
            InvalidInput: the name is in use.
            CanaryMismatch, AdapterError, AdapterDamaged: one replica cannot serve it; it is unloaded everywhere.
            BackendUnavailable: no replica can be reached.
        """
        if name in self._adapters or name in self._loading:
            raise InvalidInput(f"an adapter named {name!r} is already loaded", remedy="Unload it, or use a new name.")
        adapter = _Adapter(path, fingerprint)
        self._loading.add(name)
        try:
            failures = await together(lambda one: self._load(one, name, adapter), self._replicas)
            refusals = [one for one in failures if one and not isinstance(one, BackendUnavailable)]
            if refusals or all(failures):
                with anyio.CancelScope(shield=True):
                    await self._unload_everywhere(name)
                raise next(one for one in [*refusals, *failures] if one)
            self._adapters[name] = adapter
        finally:
            self._loading.discard(name)

    async def unload_adapter(self, name: str) -> None:
        """Refuse new requests at once, and unload on every replica when those on the way are done."""
        if name not in self._adapters:
            raise self._not_loaded(name)
        del self._adapters[name]
        await self._unload_everywhere(name)

    async def adapters(self) -> list[str]:
        """Names of the adapters, sorted, that a replica can answer with; those that all have lost are forgotten.

        Raises BackendUnavailable where no replica can be reached.
        """
        failures = await together(self._count, self._replicas)
        if all(failures):
            raise next(one for one in failures if one)
        reached = [one for one, failure in zip(self._replicas, failures, strict=True) if failure is None]
        for name in [one for one in self._adapters if not any(one in replica.holds for replica in reached)]:
            if len(reached) == len(self._replicas):  # else one that is away may have it
                del self._adapters[name]
        return sorted(self._adapters)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """By the first replica's tokenizer; all have the same model."""
        return await self._replicas[0].backend.count_tokens(texts)

    async def close(self) -> None:
        """Close all replicas."""
        for replica in self._replicas:
            await replica.backend.close()

    async def _anywhere(self, adapter: str | None, ask: Callable[[InferenceBackend], Awaitable[T]]) -> T:
        """What the least busy replica says; another one is asked where it is not there, or lost the adapter."""
        attempts = _Attempts(adapter)
        while (replica := await self._choose(adapter, attempts.over)) is not None:
            try:
                with replica.busy():
                    answer = await ask(replica.backend)
            except (BackendUnavailable, AdapterNotLoaded) as error:
                attempts.failed(replica, error)
            else:
                replica.breaker.succeeded()
                return answer
        raise attempts.last or self._nobody(adapter)

    async def _chunks(self, request: Request) -> AsyncGenerator[Chunk, None]:
        attempts = _Attempts(request.adapter)
        while (replica := await self._choose(request.adapter, attempts.over)) is not None:
            given = False
            try:
                with replica.busy():
                    async for chunk in replica.backend.stream(request):
                        given = True
                        yield chunk
            except (BackendUnavailable, AdapterNotLoaded) as error:
                attempts.failed(replica, error)
                if given:
                    raise
            else:
                replica.breaker.succeeded()
                return
        raise attempts.last or self._nobody(request.adapter)

    async def _choose(self, adapter: str | None, tried: Collection[_Replica]) -> _Replica | None:
        """The least busy replica that can answer and was not tried; None where there is none.

        One that was away is looked after first: whoever comes by when its pause is over does it, the others go on.
        """
        if adapter is not None and adapter not in self._adapters:
            raise self._not_loaded(adapter)
        for replica in self._replicas:
            if not replica.mending and not replica.breaker.open and self._lacks(replica):
                await self._mend(replica)
        able = [
            one
            for one in self._replicas
            if one not in tried and not one.breaker.open and (adapter is None or adapter in one.holds)
        ]
        return min(able, key=lambda one: (one.breaker.suspect, one.running), default=None)

    def _lacks(self, replica: _Replica) -> set[str]:
        return set(self._adapters) - replica.holds - replica.refused

    async def _mend(self, replica: _Replica) -> None:
        """Load what a replica lacks. One that cannot serve an adapter that others serve gets no requests for it."""
        replica.mending = True
        try:
            for name in sorted(self._lacks(replica)):
                if name not in self._adapters:  # unloaded meanwhile
                    continue
                failure = await self._load(replica, name, self._adapters[name])
                if isinstance(failure, BackendUnavailable):
                    return
                if failure:
                    replica.refused.add(name)
                if name not in self._adapters:
                    await self._unload(replica, name)
        finally:
            replica.mending = False

    async def _load(self, replica: _Replica, name: str, adapter: _Adapter) -> RagTunedMemoryError | None:
        """Load an adapter on one replica; what went wrong, if it did."""
        try:
            if name not in await replica.backend.adapters():
                await replica.backend.load_adapter(name, adapter.path, adapter.fingerprint)
        except (AdapterError, BackendError, InvalidInput) as error:
            if isinstance(error, BackendUnavailable):
                replica.breaker.failed()
            return error
        replica.breaker.succeeded()
        replica.holds.add(name)
        return None

    async def _unload_everywhere(self, name: str) -> None:
        await together(lambda one: self._unload(one, name), self._replicas)

    async def _unload(self, replica: _Replica, name: str) -> None:
        held = name in replica.holds
        replica.holds.discard(name)
        replica.refused.discard(name)
        if held:
            with contextlib.suppress(BackendError):  # away, or restarted without it
                await replica.backend.unload_adapter(name)

    async def _count(self, replica: _Replica) -> BackendUnavailable | None:
        """See which adapters a replica still has; what went wrong, if it did."""
        try:
            replica.holds &= set(await replica.backend.adapters())
        except BackendUnavailable as error:
            replica.breaker.failed()
            return error
        replica.breaker.succeeded()
        return None

    def _not_loaded(self, name: str) -> AdapterNotLoaded:
        loaded = ", ".join(sorted(self._adapters)) or "none"
        return AdapterNotLoaded(f"no adapter {name!r} is loaded (loaded: {loaded})", remedy="Load it first.")

    def _nobody(self, adapter: str | None) -> BackendUnavailable:
        wanted = f" that holds adapter {adapter!r}" if adapter else ""
        return BackendUnavailable(
            f"none of the {len(self._replicas)} replicas{wanted} can be reached", remedy="Start them, or try again."
        )
