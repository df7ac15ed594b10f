"""Server-sent events in the router's form, and answers that stop when their reader goes away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rag_tuned_memory.serving.server.shapes import compact

Write = Callable[[str], Awaitable[None]]
"""Sends some text of a stream."""
IDLE = 15.0
"""Seconds without an event after which a comment is sent, so that nobody takes the stream for dead."""
GONE = 499
"""The status of an answer that nobody reads."""
DONE = "data: [DONE]\n\n"
_COMMENT = ":\n\n"


def event(value: object) -> str:
    """One event of a JSON value."""
    return f"data: {compact(value)}\n\n"


class EventStream(Response):
    """An answer of events. ``produce`` writes them, and is cancelled when the reader goes away."""

    media_type = None

    def __init__(
        self,
        produce: Callable[[Write], Awaitable[None]],
        headers: dict[str, str] | None = None,
        *,
        idle: float = IDLE,
    ) -> None:
        first = {"content-type": "text/event-stream", "cache-control": "no-cache"}
        super().__init__(None, 200, {**first, **(headers or {}), "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._produce, self._idle = produce, idle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything."""
        lock = anyio.Lock()
        sent = anyio.current_time()

        async def write(text: str) -> None:
            nonlocal sent
            async with lock:
                sent = anyio.current_time()
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

        async def comment() -> None:
            while True:
                await anyio.sleep_until(sent + self._idle)
                if anyio.current_time() >= sent + self._idle:
                    await write(_COMMENT)

        async with anyio.create_task_group() as group:
            group.start_soon(_watch, receive, group)
            group.start_soon(comment)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._produce(write)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            group.cancel_scope.cancel()


async def while_connected(request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
    """The answer, unless the client goes away: then the work is cancelled. The body must have been read."""
    answer = Response(status_code=GONE)
    async with anyio.create_task_group() as group:
        group.start_soon(_watch, request.receive, group)
        answer = await work()
        group.cancel_scope.cancel()
    return answer


async def _watch(receive: Receive, group: TaskGroup) -> None:
    """Cancel the group when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    group.cancel_scope.cancel()
