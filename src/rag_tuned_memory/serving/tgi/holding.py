"""Which adapters may be asked for, what proves them, and who is using them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio

from rag_tuned_memory.errors import AdapterNotLoaded, InvalidInput
from rag_tuned_memory.serving.base import Fingerprint
from rag_tuned_memory.serving.tgi.witness import Witness


@dataclass(eq=False)
class Held:
    """One adapter that the server was seen to serve, by the process that ``proven`` watches."""

    name: str
    fingerprint: Fingerprint
    proven: Witness
    users: int = 0
    unused: anyio.Event | None = None
    """Set when the last user leaves, where somebody waits for that."""


class HeldAdapters:
    """The adapters that this client holds, by name."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._coming: set[str] = set()

    def names(self) -> list[str]:
        """Sorted."""
        return sorted(self._held)

    @contextmanager
    def adding(self, name: str) -> Iterator[None]:
        """Reserves a name while it is being proven. Raises InvalidInput where it is in use."""
        if name in self._held or name in self._coming:
            raise InvalidInput(
                f"an adapter named {name!r} is already loaded",
                remedy="Adapter names are never overwritten: use a new version's name, or unload this one first.",
            )
        self._coming.add(name)
        try:
            yield
        finally:
            self._coming.discard(name)

    def add(self, held: Held) -> None:
        """From here on its name may be used."""
        self._held[held.name] = held

    @contextmanager
    def using(self, name: str | None) -> Iterator[Held | None]:
        """The adapter of a request, kept until the request is done; None for the base. Raises AdapterNotLoaded."""
        if name is None:
            yield None
            return
        held = self.get(name)
        held.users += 1
        try:
            yield held
        finally:
            held.users -= 1
            if held.unused and not held.users:
                held.unused.set()

    def get(self, name: str) -> Held:
        """Raises AdapterNotLoaded."""
        if name not in self._held:
            loaded = ", ".join(self.names()) or "none"
            raise AdapterNotLoaded(f"no adapter {name!r} is loaded (loaded: {loaded})", remedy="Load it first.")
        return self._held[name]

    def drop(self, held: Held) -> None:
        """Forget it now, if it is still the one of its name."""
        if self._held.get(held.name) is held:
            del self._held[held.name]

    async def retire(self, name: str) -> None:
        """Forget it for new requests, and wait for those that use it. Raises AdapterNotLoaded."""
        held = self.get(name)
        self.drop(held)
        if held.users:
            held.unused = anyio.Event()
            await held.unused.wait()
