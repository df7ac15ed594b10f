"""What a process has lately seen of the server, so that it need not ask again before each search.

A version that counted can cease to count only by being replaced or removed, and whoever does this removes its passages
before saying that it is done. So a remembered version can mislead only where that process was killed in between, while
a search finds passages of the old version and none of the new one, and then for ``SECONDS`` at most.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from rag_tuned_memory.embedding.base import EmbedderIdentity

Version = tuple[str, str]
"""A trajectory's id and a generation of it."""

SECONDS = 300.0
EMBEDDER_SECONDS = 1.0
"""So long a namespace that another process re-embedded may still be searched with the old vectors."""
_MOST = 100_000


class Known:
    """Versions that counted a moment ago, and whose vectors each namespace was searched with at last."""

    def __init__(self) -> None:
        self._embedders: dict[str, tuple[EmbedderIdentity, float]] = {}
        self._until: dict[tuple[str, Version], float] = {}

    def embedder(self, namespace: str) -> EmbedderIdentity | None:
        """Whose vectors were searched within the last second."""
        identity, until = self._embedders.get(namespace, (None, 0.0))
        return identity if until > time.monotonic() else None

    def add_embedder(self, namespace: str, identity: EmbedderIdentity | None) -> None:
        """The server has just said whose vectors are searched, or was told so."""
        if identity is None:
            self._embedders.pop(namespace, None)
        else:
            self._embedders[namespace] = identity, time.monotonic() + EMBEDDER_SECONDS

    def counting(self, namespace: str, versions: Collection[Version]) -> set[Version]:
        """Those of the versions that counted within the last seconds."""
        now = time.monotonic()
        return {one for one in versions if self._until.get((namespace, one), now) > now}

    def add(self, namespace: str, versions: Collection[Version]) -> None:
        """The server has just said that these count."""
        if len(self._until) > _MOST:
            self._until.clear()
        until = time.monotonic() + SECONDS
        self._until.update(((namespace, one), until) for one in versions)

    def forget(self, namespace: str) -> None:
        """The namespace is gone."""
        self._embedders.pop(namespace, None)
        self._until = {key: until for key, until in self._until.items() if key[0] != namespace}
