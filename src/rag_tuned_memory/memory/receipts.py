"""What the memory's methods return."""

from __future__ import annotations

from dataclasses import dataclass, field

from rag_tuned_memory.adapters.manifest import Watermark
from rag_tuned_memory.errors import RagTunedMemoryError
from rag_tuned_memory.store.base import StoreStats


@dataclass(frozen=True, slots=True)
class RecordReceipt:
    """A trajectory that is on disk and can be recalled.

    ``changed`` is False where the same content was there already. In the results of ``record_many`` an ``error`` says
    why this one was not taken; ``id`` is empty where it could not even be read.
    """

    id: str
    changed: bool
    error: RagTunedMemoryError | None = None


@dataclass(frozen=True, slots=True)
class ForgetReceipt:
    """What a forget did, and what is still to do.

    ``removed`` trajectories are gone from the store with all that was derived from them there, ``missing`` ones were
    not there. ``tainted`` adapters learned from a removed one and never serve again. ``deleted`` are folders of
    unfinished runs. ``remaining`` says, a sentence each, what still holds the text or waits to be done.
    """

    removed: tuple[str, ...]
    missing: tuple[str, ...] = ()
    tainted: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    remaining: tuple[str, ...] = ()
    retrain_due: bool = False


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """What a namespace holds, and how far its adapters have come.

    ``adapters`` maps each one's name to its state. ``newer_episodes`` counts trajectories written since the
    ``watermark`` of the ``serving`` adapter; without one, all of them.
    """

    namespace: str
    store: StoreStats
    adapters: dict[str, str] = field(default_factory=dict)
    serving: str | None = None
    watermark: Watermark | None = None
    newer_episodes: int = 0
