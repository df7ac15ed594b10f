"""A thread of its own for torch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import anyio.to_thread

T = TypeVar("T")


async def in_own_thread(work: Callable[[], T], *, abandon_on_cancel: bool = False) -> T:
    """Run blocking torch work in a thread that ends with it; returns its result, raises what it raises.

    torch's CPU loops run on OpenMP, which keeps workers for each thread that ever ran one. Once all of a process's
    threads together have more workers than there are cores, waiting workers sleep instead of spin, and everything
    takes twice as long (``benchmarks/distil_speed`` measures it). The threads of anyio live on when their work is
    done, and their workers with them.
    """

    def run() -> T:
        with ThreadPoolExecutor(1, thread_name_prefix="rtm-torch") as executor:
            return executor.submit(work).result()

    return await anyio.to_thread.run_sync(run, abandon_on_cancel=abandon_on_cancel)
