"""What a process has lately seen of the server, so that it need not ask again before each search.

A version that counted can cease to count only by being replaced or removed, and whoever does this removes its passages
before saying that it is done. So a remembered version can mislead only where that process was killed in between, and
then for ``SECONDS`` at most.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from rag_tuned_memory.embedding.base import EmbedderIdentity

Version = tuple[str, str]
"""A trajectory's id and a generation of it."""

SECONDS = 10.0
_MOST = 100_000


class Known:
    """Versions that counted a moment ago, and whose vectors each namespace was searched with at last."""

    def __init__(self) -> None:
        self.embedders: dict[str, EmbedderIdentity] = {}
        """By namespace; to be compared with what the server says."""
        self._until: dict[tuple[str, Version], float] = {}

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
        self.embedders.pop(namespace, None)
        self._until = {key: until for key, until in self._until.items() if key[0] != namespace}
