from __future__ import annotations

import threading

import pytest

from rag_tuned_memory.models import in_own_thread

pytestmark = pytest.mark.anyio


async def test_the_thread_ends_with_its_work() -> None:
    threads: list[threading.Thread] = []

    def work() -> int:
        threads.append(threading.current_thread())
        return 7

    assert await in_own_thread(work) == 7
    assert await in_own_thread(work) == 7
    assert threads[0] is not threads[1]
    assert not any(thread.is_alive() for thread in threads)


async def test_errors_arrive_as_they_are() -> None:
    def work() -> None:
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        await in_own_thread(work)
