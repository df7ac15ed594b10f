"""What a blocking face must stand: loops that run already, threads, early ends, no close at all."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from incidents import episode
from rag_tuned_memory.errors import InvalidInput, TrajectoryNotFound
from rag_tuned_memory.memory import AsyncMemory, Memory
from rag_tuned_memory.routing.base import Route
from rag_tuned_memory.serving.scripted import ScriptedBackend
from rag_tuned_memory.settings import Settings


def test_it_works_inside_a_running_loop(memory: Memory) -> None:
    async def notebook() -> str:
        return memory.record(episode()).id

    identity = asyncio.run(notebook())
    assert memory.recall("disk").results[0].trajectory_id == identity


def test_several_threads_may_use_it(memory: Memory) -> None:
    threads = [threading.Thread(target=lambda n=n: memory.record(episode(n))) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memory.stats().store.trajectories == 8


def test_a_stream_comes_in_pieces_and_ends_with_the_answer(memory: Memory) -> None:
    memory.record(episode())
    chunks = list(memory.stream("which disk is full?", route=Route.RETRIEVAL))
    assert "".join(chunk.text for chunk in chunks) == "no idea"
    assert len(chunks) > 2
    answer = chunks[-1].answer
    assert answer is not None
    assert (answer.text, answer.route) == ("no idea", Route.RETRIEVAL)
    assert all(chunk.answer is None for chunk in chunks[:-1])


def test_a_stream_raises_what_the_core_raises(memory: Memory) -> None:
    with pytest.raises(InvalidInput, match="no route is named 'psychic'"):
        list(memory.stream("x", route="psychic"))  # type: ignore[arg-type]


def test_a_route_may_be_given_as_text(memory: Memory) -> None:
    memory.record(episode())
    assert memory.answer("which disk is full?", route="retrieval").route is Route.RETRIEVAL  # type: ignore[arg-type]


def test_a_memory_that_is_used_after_its_close_does_not_keep_the_program(tmp_path: Path) -> None:
    program = f"""
from rag_tuned_memory import Memory, Settings
from rag_tuned_memory.errors import StoreError
memory = Memory("a", settings=Settings(home={str(tmp_path)!r}, embedder="hashing"))
memory.record({{"steps": [{{"kind": "message", "text": "x"}}]}})
for _ in range(3):
    memory.close()
    try:
        memory.stats()
    except StoreError:
        pass
print("ended")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "ended\n", "")


def test_a_decision_generates_nothing(memory: Memory, backend: ScriptedBackend) -> None:
    memory.record(episode())
    routing = memory.decide("which disk is full?", k=2, token_budget=None)
    assert routing.decision.route is Route.RETRIEVAL
    assert len(routing.recollection.results) == 2
    assert (routing.decision.features.adapter, memory.adapter()) == (None, None)
    assert asyncio.run(memory.adecide("which disk is full?", k=2, token_budget=None)) == routing
    assert backend.requests == []


def test_an_iteration_that_is_left_does_not_keep_the_memory_open(settings: Settings) -> None:
    memory = Memory("operations", settings=settings)
    memory.record_many(episode(1 + n % 28, source_id=f"i{n}") for n in range(60))
    episodes = memory.export()
    next(episodes)
    started = time.monotonic()
    memory.close()
    assert time.monotonic() - started < 10
    del episodes


def test_closing_twice_and_going_on(memory: Memory) -> None:
    identity = memory.record(episode()).id
    memory.close()
    memory.close()
    with pytest.raises(Exception, match="closed"):
        memory.recall("disk")
    with Memory("operations", settings=memory.settings) as again:
        assert again.recall("disk").results[0].trajectory_id == identity


def test_parts_that_were_given_stay_open(memory: Memory, backend: ScriptedBackend) -> None:
    memory.record(episode())
    memory.close()
    with Memory("operations", settings=memory.settings, backend=backend) as again:
        assert again.answer("which disk is full?", route=Route.RETRIEVAL).text == "no idea"


def test_a_program_that_never_closes_its_memory_ends_and_loses_nothing(settings: Settings) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from rag_tuned_memory import Memory, Settings\n"
        "memory = Memory('operations', settings=Settings(home=Path(sys.argv[1]), embedder='hashing'))\n"
        "memory.record({'steps': [{'kind': 'message', 'text': 'the disk is full'}]})\n"
        "memory.start_worker()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(settings.home)], check=True, timeout=60)
    with Memory("operations", settings=settings) as memory:
        assert memory.recall("disk").results


@pytest.mark.anyio
async def test_the_loop_goes_on_while_something_is_recorded(settings: Settings) -> None:
    longest = 0.0

    async def heart() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    async with AsyncMemory("operations", settings=settings) as memory:
        await memory.record(episode(1))
        beating = asyncio.create_task(heart())
        big = episode(2, steps=[{"kind": "message", "text": f"word{n} " * 200} for n in range(300)])
        await memory.record(big)
        beating.cancel()
    assert longest < 1.0


@pytest.mark.anyio
async def test_it_is_an_async_context_manager(settings: Settings, tmp_path: Path) -> None:
    async with AsyncMemory("operations", settings=settings) as memory:
        receipt = await memory.record(episode())
        assert [one.id async for one in memory.export()] == [receipt.id]


def test_an_episode_can_be_read_by_its_id(memory: Memory) -> None:
    receipt = memory.record(episode())
    assert memory.get(receipt.id).goal == episode()["goal"]
    assert asyncio.run(memory.aget(receipt.id)).id == receipt.id
    with pytest.raises(TrajectoryNotFound, match="there is no trajectory"):
        memory.get("no such id")


def test_several_steps_can_be_one_call(memory: Memory) -> None:
    receipt = memory.record(episode())

    async def goal_of_all(core: AsyncMemory) -> list[str]:
        assert threading.current_thread() is not threading.main_thread()
        return [one.goal async for one in core.export()] + [(await core.get(receipt.id)).goal]

    assert memory.call(goal_of_all) == [episode()["goal"]] * 2
    assert asyncio.run(memory.acall(goal_of_all)) == [episode()["goal"]] * 2
