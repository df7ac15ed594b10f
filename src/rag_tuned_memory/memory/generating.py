"""Text for a conversation that the caller composed: the memory only sees to which model may say it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from rag_tuned_memory.adapters.live import LiveAdapters
from rag_tuned_memory.errors import AdapterNotLoaded, InvalidInput
from rag_tuned_memory.serving.base import Chunk, Generation, Request


async def generate(live: LiveAdapters, namespace: str, request: Request) -> Generation:
    """Answer ``request``; its adapter must be one of ``namespace``. See ``AsyncMemory.generate``."""
    await _check(live, namespace, request)
    try:
        return (await live.backend.generate([request]))[0]
    except AdapterNotLoaded:  # the server was restarted, or another process let go of it
        await _check(live, namespace, request, again=True)
        return (await live.backend.generate([request]))[0]


async def stream(live: LiveAdapters, namespace: str, request: Request) -> AsyncIterator[Chunk]:
    """As ``generate``, in pieces. There is no second try once something was said."""
    await _check(live, namespace, request)
    pieces = live.backend.stream(request)
    try:
        first = await anext(pieces)
    except AdapterNotLoaded:
        await _check(live, namespace, request, again=True)
        pieces = live.backend.stream(request)
        first = await anext(pieces)
    yield first
    async for piece in pieces:
        yield piece


async def _check(live: LiveAdapters, namespace: str, request: Request, *, again: bool = False) -> None:
    if not request.messages:
        raise InvalidInput("a conversation needs at least one message", place="messages")
    if request.max_new_tokens < 1:
        raise InvalidInput(f"must be at least 1, not {request.max_new_tokens}", place="max_new_tokens")
    if again:
        await live.refresh(namespace)
    if request.adapter is not None:
        await live.named(namespace, request.adapter)
