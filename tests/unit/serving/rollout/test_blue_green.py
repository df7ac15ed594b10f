from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from rag_tuned_memory.errors import AdapterNotLoaded, BackendError, BackendUnavailable, CanaryMismatch, InvalidInput
from rag_tuned_memory.serving.base import Chunk, Fingerprint, Generation, Message, Request
from rag_tuned_memory.serving.health import Health
from rag_tuned_memory.serving.rollout import BlueGreen, Server
from rag_tuned_memory.serving.rollout.state import RolloutState
from rag_tuned_memory.serving.scripted import ScriptedBackend

pytestmark = pytest.mark.anyio
PROOF = Fingerprint(canaries=(), tolerance=0.1, margin=1.0)


class Killed(BaseException):
    """In place of a supervisor that is gone."""


@dataclass
class World:
    """A double of everything outside the supervisor: servers that run, and what goes wrong with them."""

    running: dict[str, set[str]] = field(default_factory=dict)
    """The adapters of each server that runs, by its URL."""
    wrong: set[str] = field(default_factory=set)
    """Adapters that servers answer for from the base model."""
    hung: bool = False
    ends_at_start: bool = False
    slow: float = 0.0
    dies_at: int | None = None
    steps: itertools.count[int] = field(default_factory=itertools.count)
    number: itertools.count[int] = field(default_factory=itertools.count)

    def step(self) -> None:
        """Something outside is asked for; the supervisor may be gone before it happens."""
        if self.dies_at is not None and next(self.steps) >= self.dies_at:
            raise Killed

    async def start(self, adapters: Mapping[str, Path]) -> Server:
        self.step()
        url = f"http://server-{next(self.number)}"
        if not self.ends_at_start:
            self.running[url] = set(adapters)
        self.step()  # it runs, and nobody knows yet
        return Server(url=url)

    async def alive(self, server: Server) -> bool:
        return server.url in self.running

    async def stop(self, server: Server) -> None:
        self.step()
        self.running.pop(server.url, None)

    async def strays(self, known: Sequence[Server]) -> list[Server]:
        return [Server(url=url) for url in self.running if url not in {one.url for one in known}]

    async def why(self, server: Server) -> str:
        return "its log ends in: out of memory"


class Client(ScriptedBackend):
    """A double of a server's client: names its server and the adapter that really answers."""

    def __init__(self, world: World, url: str) -> None:
        def answer(request: Request) -> str:
            return f"{url} {request.adapter or 'base'}"

        super().__init__(answer)
        self.world, self.url = world, url

    async def health(self) -> Health:
        self.world.step()
        if self.world.hung or self.url not in self.world.running:
            return Health("refused", "nothing listens", 0.0)
        return Health("ready", "", 0.0)

    async def load_adapter(self, name: str, path: Path, fingerprint: Fingerprint | None = None) -> None:
        self.world.step()
        if name in self.world.wrong or name not in self.world.running[self.url]:
            raise CanaryMismatch("it answers as the base model does", place=name)
        await super().load_adapter(name, path, None)

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        self.reach()
        await anyio.sleep(self.world.slow)
        self.reach()
        return await super().generate(requests)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        self.reach()
        async for chunk in super().stream(request):
            await anyio.sleep(self.world.slow)
            self.reach()
            yield chunk

    def reach(self) -> None:
        if self.url not in self.world.running:
            raise BackendUnavailable("refused")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def supervise(world: World, tmp_path: Path) -> Callable[[], BlueGreen]:
    def make() -> BlueGreen:
        return BlueGreen(world, lambda url: Client(world, url), tmp_path / "rollout", base_model="m", start_seconds=1)

    return make


async def said(backend: BlueGreen, adapter: str | None = None) -> str:
    request = Request((Message("user", "q"),), adapter)
    return (await backend.generate([request]))[0].text


def abandon(backend: BlueGreen) -> None:
    """What the end of its process does: its lock is gone, nothing else is cleaned up."""
    if backend._only is not None:
        backend._only.release(force=True)


async def test_a_new_server_takes_over_and_the_old_one_ends(
    world: World, supervise: Callable[[], BlueGreen], tmp_path: Path
) -> None:
    backend = supervise()
    assert await said(backend) == "http://server-0 base"
    await backend.load_adapter("v1", tmp_path, PROOF)
    await backend.load_adapter("v2", tmp_path, PROOF)
    assert await said(backend, "v1") == "http://server-2 v1"
    assert world.running == {"http://server-2": {"v1", "v2"}}
    await backend.unload_adapter("v1")
    with pytest.raises(AdapterNotLoaded):
        await said(backend, "v1")
    await backend.load_adapter("v3", tmp_path, PROOF)
    assert world.running == {"http://server-3": {"v2", "v3"}}
    assert await backend.adapters() == ["v2", "v3"]
    await backend.close(stop=True)
    assert world.running == {}


async def test_what_was_begun_is_finished_by_the_old_server(
    world: World, supervise: Callable[[], BlueGreen], tmp_path: Path
) -> None:
    backend = supervise()
    await backend.load_adapter("v1", tmp_path, PROOF)
    world.slow = 0.2
    answers: list[str] = []
    async with anyio.create_task_group() as group:

        async def ask() -> None:
            answers.append(await said(backend, "v1"))

        async def stream() -> None:
            request = Request((Message("user", "q"),), "v1")
            answers.append("".join([chunk.text async for chunk in backend.stream(request)]))

        group.start_soon(ask)
        group.start_soon(stream)
        await anyio.sleep(0.05)
        await backend.load_adapter("v2", tmp_path, PROOF)
        assert await said(backend, "v1") == "http://server-2 v1"
    assert answers == ["http://server-1 v1"] * 2
    assert world.running == {"http://server-2": {"v1", "v2"}}
    await backend.close()


async def test_where_the_new_server_is_wrong_the_old_one_goes_on(
    world: World, supervise: Callable[[], BlueGreen], tmp_path: Path
) -> None:
    backend = supervise()
    await backend.load_adapter("v1", tmp_path, PROOF)
    for fault, error in (("wrong", CanaryMismatch), ("hung", BackendUnavailable), ("ends_at_start", BackendError)):
        setattr(world, fault, {"v2"} if fault == "wrong" else True)
        with pytest.raises(error, match=r"base model|out of memory"):
            await backend.load_adapter("v2", tmp_path, PROOF)
        setattr(world, fault, set() if fault == "wrong" else False)
        assert await said(backend, "v1") == "http://server-1 v1"
        assert list(world.running) == ["http://server-1"]
        assert await backend.adapters() == ["v1"]
    await backend.load_adapter("v2", tmp_path, PROOF)
    assert (await said(backend, "v2")).endswith("v2")
    await backend.close()


async def test_a_server_that_died_is_started_again(
    world: World, supervise: Callable[[], BlueGreen], tmp_path: Path
) -> None:
    backend = supervise()
    await backend.load_adapter("v1", tmp_path, PROOF)
    world.running.clear()
    async with anyio.create_task_group() as group:  # whoever asks meanwhile waits for the same new one
        for _ in range(5):
            group.start_soon(said, backend, "v1")
    assert world.running == {"http://server-2": {"v1"}}
    await backend.close()


async def test_the_next_supervisor_takes_over_what_runs(
    world: World, supervise: Callable[[], BlueGreen], tmp_path: Path
) -> None:
    first = supervise()
    await first.load_adapter("v1", tmp_path, PROOF)
    with pytest.raises(BackendUnavailable, match="another process supervises"):
        await said(supervise())
    await first.close()
    second = supervise()
    assert await said(second, "v1") == "http://server-1 v1"
    await second.close()
    world.wrong = {"v1"}  # it is not what it should be any more, and no other can be started either
    with pytest.raises(CanaryMismatch):
        await said(supervise(), "v1")
    assert world.running == {}


@pytest.mark.parametrize("step", range(12))
async def test_a_supervisor_killed_at_any_step(
    world: World, supervise: Callable[[], BlueGreen], tmp_path: Path, step: int
) -> None:
    first = supervise()
    await first.load_adapter("v1", tmp_path, PROOF)
    world.dies_at = step
    try:
        await first.load_adapter("v2", tmp_path, PROOF)
    except Killed:
        pass
    else:
        assert step > 4, "a rollout has that many steps at least"
    abandon(first)
    world.dies_at = None
    second = supervise()
    held = await second.adapters()
    assert held in (["v1"], ["v1", "v2"])
    for name in held:
        assert (await said(second, name)).endswith(name)
    assert len(world.running) == 1, "nothing runs that nobody knows of"
    if "v2" not in held:
        await second.load_adapter("v2", tmp_path, PROOF)
    assert (await said(second, "v2")).endswith("v2")
    assert len(world.running) == 1
    await second.close()


async def test_bad_input(supervise: Callable[[], BlueGreen], tmp_path: Path) -> None:
    backend = supervise()
    with pytest.raises(InvalidInput, match="no fingerprint"):
        await backend.load_adapter("v1", tmp_path)
    await backend.load_adapter("v1", tmp_path, PROOF)
    with pytest.raises(InvalidInput, match="already loaded"):
        await backend.load_adapter("v1", tmp_path, PROOF)
    with pytest.raises(AdapterNotLoaded):
        await backend.unload_adapter("v2")
    await backend.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        await said(backend)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "rollout.json").write_text("{")
    with pytest.raises(BackendError, match=r"rollout\.json"):
        RolloutState.load(tmp_path)
