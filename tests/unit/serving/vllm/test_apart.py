from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from asking import QUESTIONS, ask
from vllm_double import VllmDouble, write_adapter

from rag_tuned_memory.serving.base import Message
from rag_tuned_memory.serving.fingerprint import make_fingerprint
from rag_tuned_memory.serving.vllm import VllmBackend
from rag_tuned_memory.serving.vllm.apart import Apart

pytestmark = pytest.mark.anyio
CANARIES = [([Message("user", question)], "the disk was full") for question in QUESTIONS[:3]]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_server_that_mixes_up_base_and_adapters_is_found_out(
    connect: Callable[..., VllmBackend], double: VllmDouble, tmp_path: Path
) -> None:
    path = write_adapter(tmp_path / "a")
    first = connect()
    await first.load_adapter("a", path)
    fingerprint = await make_fingerprint(first, "a", CANARIES)
    await first.unload_adapter("a")
    requests = [ask("who", name) for name in (None, "a") * 4]
    [base] = await first.generate([ask("who")])

    await first.load_adapter("a", path, fingerprint)
    assert not first.keeps_base_apart  # this server is right
    right = await first.generate(requests)
    assert [one.tokens for one in right[::2]] == [base.tokens] * 4
    double.mixes_up = True
    wrong = await first.generate(requests)
    assert base.tokens not in [one.tokens for one in wrong[::2]]  # the double does what it is for

    second = connect()
    await second.load_adapter("a", path, fingerprint)
    assert second.keeps_base_apart
    answers = await second.generate(requests)
    assert [one.tokens for one in answers] == [one.tokens for one in right]
    streams = [chunk async for chunk in second.stream(ask("who"))]
    assert streams[-1].generation is not None
    assert streams[-1].generation.tokens == base.tokens

    third = connect(base_apart=True)
    await third.load_adapter("a", path)
    assert [one.tokens for one in await third.generate(requests)] == [one.tokens for one in right]


async def test_a_proof_is_right_while_others_are_served(
    connect: Callable[..., VllmBackend], double: VllmDouble, tmp_path: Path
) -> None:
    a, b = write_adapter(tmp_path / "a", seed=1), write_adapter(tmp_path / "b", seed=2)
    backend = connect()
    await backend.load_adapter("b", b)
    fingerprint = await make_fingerprint(backend, "b", CANARIES)
    await backend.unload_adapter("b")
    await backend.load_adapter("a", a)
    double.mixes_up = True
    done = False

    async def busy() -> None:
        while not done:
            await backend.generate([ask("who", "a")])

    async with anyio.create_task_group() as group:
        group.start_soon(busy)
        group.start_soon(busy)
        await anyio.sleep(0.1)
        with anyio.fail_after(20):
            await backend.load_adapter("b", b, fingerprint)
        done = True
    assert backend.keeps_base_apart


async def test_turns_are_of_one_kind_and_nobody_starves() -> None:
    apart, order, running = Apart(on=True), list[str](), list[bool]()

    async def one(name: str, base: bool) -> None:
        async with apart.turn(base=base):
            running.append(base)
            assert len(set(running)) == 1
            order.append(name)
            await anyio.sleep(0.02)
            running.remove(base)

    async with anyio.create_task_group() as group:
        for name in ("a1", "a2", "b1", "a3", "a4", "b2", "b3"):
            group.start_soon(one, name, name[0] == "b")
            await anyio.sleep(0.001)
    assert [sorted(order[:2]), order[2], sorted(order[3:5]), sorted(order[5:])] == [
        ["a1", "a2"],
        "b1",
        ["a3", "a4"],
        ["b2", "b3"],
    ]


async def test_who_stops_waiting_is_no_obstacle() -> None:
    apart = Apart(on=True)
    async with apart.turn(base=False):
        with anyio.move_on_after(0.02) as scope:
            async with apart.turn(base=True):
                pass
        assert scope.cancelled_caught
        with anyio.fail_after(1):
            async with apart.turn(base=False):
                pass
    with anyio.fail_after(1):
        async with apart.turn(base=True):
            pass


async def test_all_run_together_but_for_the_one_that_is_alone() -> None:
    apart, log = Apart(on=False), list[str]()

    async def alone() -> None:
        async with apart.turn(base=True, alone=True):
            log.append("alone")
            await anyio.sleep(0.05)
            log.append("done")

    async def tuned() -> None:
        async with apart.turn(base=False):
            log.append("tuned")

    async with anyio.create_task_group() as group:
        async with apart.turn(base=False):
            async with apart.turn(base=True):
                log.append("both")
            group.start_soon(alone)
            await anyio.sleep(0.01)
            assert log == ["both"]
        await anyio.sleep(0.01)
        group.start_soon(tuned)
    assert log == ["both", "alone", "done", "tuned"]
