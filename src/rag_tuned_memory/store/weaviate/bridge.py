"""An event loop in a thread of its own: Weaviate's client is bound to one loop, a store is used from any.

All stores of a process share it: gRPC's asyncio polls for one loop, and complains where there are several.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")


async def read(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of ``call`` in the thread's loop; a caller that is cancelled cancels it.

    The caller's loop, of whatever kind, is never blocked.
    """
    future = asyncio.run_coroutine_threadsafe(call(), _loop())
    try:
        return await _result(future)
    finally:
        future.cancel()


async def write(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """As ``read``, but a caller that is cancelled waits until the call is done: it is done wholly or not at all."""
    future = asyncio.run_coroutine_threadsafe(call(), _loop())
    with anyio.CancelScope(shield=True):
        return await _result(future, shield=True)
    raise AssertionError("the scope swallows nothing")


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The running loop. Its thread is a daemon: a store that nobody closed does not keep a program from ending."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="weaviate", daemon=True).start()
    return loop


def _result(future: Future[T], *, shield: bool = False) -> Awaitable[T]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # another kind of loop (trio): a thread waits in its place
        return anyio.to_thread.run_sync(future.result, abandon_on_cancel=True)
    wrapped = asyncio.wrap_future(future)
    return asyncio.shield(wrapped) if shield else wrapped
