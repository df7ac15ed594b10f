"""Keeping an inference backend in step with the registry: what serves is loaded and proven, nothing else is."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

import anyio
import anyio.to_thread

from rag_tuned_memory.adapters.manifest import Manifest
from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.adapters.states import State
from rag_tuned_memory.errors import AdapterNotLoaded, AdapterNotServable, RagTunedMemoryError
from rag_tuned_memory.serving.base import InferenceBackend

FRESH_SECONDS = 1.0
"""How long an answer of the registry is trusted: a promotion or taint by another process is seen within this time."""
DRAIN_SECONDS = 5.0
"""How long a version that was replaced stays loaded, for requests of other processes that have not noticed yet."""


@dataclass(slots=True)
class _Held:
    """What answers for a namespace. ``refused`` is the version that was to replace it and could not be loaded."""

    manifest: Manifest | None = None
    checked: float = float("-inf")
    refused: str | None = None


@dataclass(slots=True)
class LiveAdapters:
    """The serving adapters of a registry, in a backend.

    A new version is loaded and proven before it answers, and only then is the old one let go. Where it cannot be
    loaded, the old one goes on answering, if it still may.
    """

    registry: AdapterRegistry
    backend: InferenceBackend
    _lock: anyio.Lock = field(default_factory=anyio.Lock)
    _held: dict[str, _Held] = field(default_factory=dict)
    _leaving: dict[str, float] = field(default_factory=dict)
    """Replaced versions, and when they are unloaded."""

    async def current(self, namespace: str) -> Manifest | None:
        """The adapter that answers for ``namespace``, loaded into the backend; None when none serves.

        Raises:
            CanaryMismatch, AdapterDamaged, BackendError: what serves by the registry cannot be loaded or trusted, and
                there is no version before it that still may answer.
        """
        async with self._lock:
            held = self._held.setdefault(namespace, _Held())
            if time.monotonic() - held.checked >= FRESH_SECONDS:
                await self._follow(namespace, held)
                held.checked = time.monotonic()
            return held.manifest

    async def refresh(self, namespace: str) -> Manifest | None:
        """As ``current``, but asks registry and backend now: after a taint, or when an adapter was lost."""
        async with self._lock:
            self._held.setdefault(namespace, _Held()).checked = float("-inf")
        return await self.current(namespace)

    async def named(self, namespace: str, name: str) -> Manifest:
        """The version ``name`` of ``namespace``: the one that serves, or one before it that is loaded still.

        Raises:
            AdapterNotFound: this namespace has no such adapter.
            AdapterNotServable: it does not serve, or not any more.
            CanaryMismatch, AdapterDamaged, BackendError: as ``current``.
        """
        serving = await self.current(namespace)
        if serving and serving.name == name:
            return serving
        manifest = await anyio.to_thread.run_sync(lambda: self.registry.get(name, namespace=namespace))
        if await self._may_answer(manifest):
            return manifest
        remedy = f"{serving.name} serves now." if serving else "Distil one (`rtm distil`), or ask the base model."
        raise AdapterNotServable(f"adapter {name} does not serve", remedy=remedy)

    async def roll_out(self, name: str, reason: str) -> Manifest:
        """Load a version, prove it, let it serve by the registry, and then let go of the one before it.

        When this raises, whatever served goes on serving, and the registry's log of ``name`` says what failed.

        Raises:
            AdapterNotServable, IllegalTransition, AdapterDamaged: it may not serve, or its files were changed.
            CanaryMismatch, AdapterError, BackendError: the backend cannot load it, or does not answer as it does.
        """
        manifest = await anyio.to_thread.run_sync(self.registry.get, name)
        async with self._lock:
            held = self._held.setdefault(manifest.namespace, _Held())
            before = await self.backend.adapters()
            try:
                await self._load(manifest)
                await anyio.to_thread.run_sync(self.registry.promote, name, reason)
            except BaseException as error:
                with anyio.CancelScope(shield=True):
                    await self._give_up(name, error, loaded_before=name in before)
                raise
            await self._switch(held, manifest)
            held.checked = time.monotonic()
        return manifest

    async def _follow(self, namespace: str, held: _Held) -> None:
        """Hold what serves by the registry now."""
        await self._let_go()
        wanted = await anyio.to_thread.run_sync(self.registry.serving, namespace)
        if wanted is None:
            await self._switch(held, None)
            return
        if wanted.name == held.refused and held.manifest and await self._may_answer(held.manifest):
            return
        try:
            await self._load(wanted)
        except RagTunedMemoryError as error:
            if not held.manifest or held.manifest.name == wanted.name or not await self._may_answer(held.manifest):
                raise
            held.refused = wanted.name
            await self._remark(wanted.name, f"could not be loaded, {held.manifest.name} goes on answering: {error}")
            return
        await self._switch(held, wanted)

    async def _load(self, manifest: Manifest) -> None:
        path = await anyio.to_thread.run_sync(self.registry.path, manifest.name)
        if manifest.name not in await self.backend.adapters():
            await self.backend.load_adapter(manifest.name, path, manifest.fingerprint)
        self._leaving.pop(manifest.name, None)

    async def _switch(self, held: _Held, manifest: Manifest | None) -> None:
        """From here on ``manifest`` answers. What answered before leaves: at once if it may not answer any more."""
        old, held.manifest, held.refused = held.manifest, manifest, None
        if old is None or (manifest and old.name == manifest.name):
            return
        state = await anyio.to_thread.run_sync(self.registry.state, old.name)
        self._leaving[old.name] = time.monotonic() + (0 if state is State.TAINTED else DRAIN_SECONDS)
        await self._let_go()

    async def _let_go(self) -> None:
        """Unload the replaced versions whose time has come."""
        now = time.monotonic()
        for name in [name for name, due in self._leaving.items() if due <= now]:
            del self._leaving[name]
            with contextlib.suppress(AdapterNotLoaded):  # somebody else let go of it already
                await self.backend.unload_adapter(name)

    async def _may_answer(self, manifest: Manifest) -> bool:
        """Whether a version that was replaced in the registry could serve again, and is still loaded."""
        state = await anyio.to_thread.run_sync(self.registry.state, manifest.name)
        return state in (State.SERVING, State.RETIRED) and manifest.name in await self.backend.adapters()

    async def _give_up(self, name: str, error: BaseException, *, loaded_before: bool) -> None:
        if not isinstance(error, AdapterNotServable):
            await self._remark(name, f"was not rolled out: {error or type(error).__name__}")
        if not loaded_before:
            with contextlib.suppress(RagTunedMemoryError):
                await self.backend.unload_adapter(name)

    async def _remark(self, name: str, text: str) -> None:
        with contextlib.suppress(RagTunedMemoryError):  # what it is about is raised or served anyway
            await anyio.to_thread.run_sync(self.registry.remark, name, text)
