"""Keeping an inference backend in step with the registry: what serves is loaded and proven, nothing else is."""

from __future__ import annotations

import contextlib
import time

import anyio
import anyio.to_thread

from rag_tuned_memory.adapters.manifest import Manifest
from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.errors import AdapterNotLoaded
from rag_tuned_memory.serving.base import InferenceBackend

FRESH_SECONDS = 1.0
"""How long an answer of the registry is trusted: a promotion or taint by another process is seen within this time."""


class LiveAdapters:
    """The serving adapters of a registry, in a backend."""

    def __init__(self, registry: AdapterRegistry, backend: InferenceBackend) -> None:
        self.registry = registry
        self.backend = backend
        self._lock = anyio.Lock()
        self._seen: dict[str, tuple[float, Manifest | None]] = {}
        self._held: dict[str, str] = {}

    async def current(self, namespace: str) -> Manifest | None:
        """The adapter that serves ``namespace``, loaded into the backend; None when none serves.

        Raises:
            CanaryMismatch, AdapterDamaged: what serves by the registry cannot be trusted; nothing is loaded.
        """
        async with self._lock:
            checked, manifest = self._seen.get(namespace, (float("-inf"), None))
            if time.monotonic() - checked >= FRESH_SECONDS:
                manifest = await anyio.to_thread.run_sync(self.registry.serving, namespace)
                await self._hold(namespace, manifest)
                self._seen[namespace] = (time.monotonic(), manifest)
            return manifest

    async def refresh(self, namespace: str) -> Manifest | None:
        """As ``current``, but asks the registry now: after a promotion or a taint of this process."""
        async with self._lock:
            self._seen.pop(namespace, None)
        return await self.current(namespace)

    async def _hold(self, namespace: str, manifest: Manifest | None) -> None:
        held, wanted = self._held.get(namespace), manifest.name if manifest else None
        if held == wanted:
            return
        if manifest:
            path = await anyio.to_thread.run_sync(self.registry.path, manifest.name)
            if manifest.name not in await self.backend.adapters():
                await self.backend.load_adapter(manifest.name, path, manifest.fingerprint)
            self._held[namespace] = manifest.name
        if held:
            if not manifest:
                del self._held[namespace]
            with contextlib.suppress(AdapterNotLoaded):  # somebody else let go of it already
                await self.backend.unload_adapter(held)
