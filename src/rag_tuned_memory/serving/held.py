"""Which adapters a client of a server may ask for, and how many of its requests use each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import anyio

from rag_tuned_memory.errors import AdapterNotLoaded, InvalidInput

T = TypeVar("T")


@dataclass
class _Entry(Generic[T]):
    value: T
    state: Literal["joining", "held", "leaving"] = "joining"
    users: int = 0
    idle: anyio.Event = field(default_factory=anyio.Event)


class HeldAdapters(Generic[T]):
    """Names that were proven live, each with a value that its requests need. For one event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry[T]] = {}

    def names(self) -> list[str]:
        """What may be asked for, sorted."""
        return sorted(name for name, entry in self._entries.items() if entry.state == "held")

    @contextmanager
    def joining(self, name: str, value: T) -> Iterator[None]:
        """Reserves the name; it is held when the block ends, and free again when it fails.

        Raises:
            InvalidInput: the name is in use.
        """
        if name in self._entries:
            raise InvalidInput(
                f"an adapter named {name!r} is already loaded",
                remedy="Adapter names are never overwritten: use a new version's name, or unload this one first.",
            )
        entry = self._entries[name] = _Entry(value)
        try:
            yield
        except BaseException:
            self._remove(name, entry)
            raise
        entry.state = "held"

    @contextmanager
    def using(self, name: str) -> Iterator[T]:
        """The value of a held adapter, which cannot leave before the block ends. Raises AdapterNotLoaded."""
        entry = self._held(name)
        entry.users += 1
        try:
            yield entry.value
        finally:
            entry.users -= 1
            if not entry.users:
                entry.idle.set()

    @contextmanager
    def leaving(self, name: str) -> Iterator[anyio.Event | None]:
        """Refuses new users at once; the event (None where there are none) is set when the last one is done.

        When the block ends the name is free, also when it fails.

        Raises:
            AdapterNotLoaded: no such adapter.
        """
        entry = self._held(name)
        entry.state, entry.idle = "leaving", anyio.Event()
        try:
            yield entry.idle if entry.users else None
        finally:
            self._remove(name, entry)

    def lose(self, name: str, value: T) -> None:
        """Forget an adapter that the server does not have any more, unless it was brought back since (``is not``)."""
        entry = self._entries.get(name)
        if entry is not None and entry.value is value and entry.state == "held":
            del self._entries[name]

    def value(self, name: str) -> T:
        """The value of a held adapter. Raises AdapterNotLoaded."""
        return self._held(name).value

    def _held(self, name: str) -> _Entry[T]:
        entry = self._entries.get(name)
        if entry is None or entry.state != "held":
            held = ", ".join(self.names()) or "none"
            raise AdapterNotLoaded(f"no adapter {name!r} is loaded (loaded: {held})", remedy="Load it first.")
        return entry

    def _remove(self, name: str, entry: _Entry[T]) -> None:
        if self._entries.get(name) is entry:
            del self._entries[name]
