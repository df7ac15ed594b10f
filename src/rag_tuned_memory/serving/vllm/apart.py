"""Base requests and adapters' requests one kind at a time, for servers that mix them up.

vLLM's CPU kernels (0.32, ``lora/ops/torch_ops``) compute a base row that shares a step with adapters' rows with the
adapter in the last of ``--max-loras`` places, and answer HTTP 200. Its GPU kernels (``lora/ops/triton_ops``) leave such
rows out. So each proof of an adapter also asks the base, in the same batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio


class Apart:
    """Turns of two kinds of requests. While ``on`` is False, nobody waits but for one that is to be ``alone``.

    First come, first served: neither kind can keep the other one out for good.
    """

    def __init__(self, *, on: bool) -> None:
        self.on = on
        self._running = {True: 0, False: 0}
        self._alone = 0
        self._waiting: deque[object] = deque()
        self._changed = anyio.Condition()

    @asynccontextmanager
    async def turn(self, *, base: bool, alone: bool = False) -> AsyncIterator[None]:
        """Waits for the requests of the other kind where these are kept apart, or either is to be ``alone``."""
        ticket = object()
        async with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or (self._running[not base] and (self.on or alone or self._alone)):
                    await self._changed.wait()
                self._running[base] += 1
                self._alone += alone
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                async with self._changed:
                    self._running[base] -= 1
                    self._alone -= alone
                    self._changed.notify_all()
