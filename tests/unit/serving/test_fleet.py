from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import pytest

from rag_tuned_memory.errors import AdapterNotLoaded, BackendUnavailable, CanaryMismatch, InvalidInput, PromptTooLong
from rag_tuned_memory.serving import breaker
from rag_tuned_memory.serving.base import Chunk, Fingerprint, Generation, Message, Request
from rag_tuned_memory.serving.fleet import Fleet
from rag_tuned_memory.serving.scripted import ScriptedBackend

pytestmark = pytest.mark.anyio


class Replica(ScriptedBackend):
    """A double that can go away, come back empty, refuse adapters, and be slow."""

    def __init__(self, name: str, base_model: str = "m") -> None:
        super().__init__(lambda request: f"{name} {request.adapter or 'base'}", base_model=base_model)
        self.away = self.refuses = False
        self.dies_after: int | None = None
        self.slow = 0.0
        self.asked = self.most_at_once = self.now = 0

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        self.reach()
        self.asked += 1
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        try:
            await anyio.sleep(self.slow)
            self.reach()
            return await super().generate(requests)
        finally:
            self.now -= 1

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        self.reach()
        given = 0
        async for chunk in super().stream(request):
            if given == self.dies_after:
                raise BackendUnavailable("cut")
            given += 1
            yield chunk

    async def load_adapter(self, name: str, path: Path, fingerprint: Fingerprint | None = None) -> None:
        self.reach()
        if self.refuses:
            raise CanaryMismatch("another adapter answers", place=name)
        await super().load_adapter(name, path, fingerprint)

    async def unload_adapter(self, name: str) -> None:
        self.reach()
        await super().unload_adapter(name)

    async def adapters(self) -> list[str]:
        self.reach()
        return await super().adapters()

    def reach(self) -> None:
        if self.away:
            raise BackendUnavailable("refused")

    def restart(self) -> None:
        self.away = False
        self._adapters.clear()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE", 0.02)


def ask(adapter: str | None = None) -> Request:
    return Request((Message("user", "q"),), adapter)


async def said(fleet: Fleet, adapter: str | None = None) -> str:
    return (await fleet.generate([ask(adapter)]))[0].text


async def test_requests_go_to_the_least_busy() -> None:
    replicas = [Replica(name) for name in "abc"]
    for one in replicas:
        one.slow = 0.02
    answers = await Fleet(replicas).generate([ask() for _ in range(9)])
    assert sorted(one.text for one in answers) == ["a base"] * 3 + ["b base"] * 3 + ["c base"] * 3
    assert [one.most_at_once for one in replicas] == [3, 3, 3]


async def test_an_adapter_is_on_all_replicas_and_leaves_all(tmp_path: Path) -> None:
    replicas = [Replica("a"), Replica("b")]
    fleet = Fleet(replicas)
    await fleet.load_adapter("v1", tmp_path)
    assert [await one.adapters() for one in replicas] == [["v1"], ["v1"]]
    assert await fleet.adapters() == ["v1"]
    with pytest.raises(InvalidInput, match="already loaded"):
        await fleet.load_adapter("v1", tmp_path)
    await fleet.unload_adapter("v1")
    assert [await one.adapters() for one in replicas] == [[], []]
    for call in (said(fleet, "v1"), fleet.unload_adapter("v1")):
        with pytest.raises(AdapterNotLoaded):
            await call


async def test_one_that_is_away_is_passed_over_and_mended_when_it_is_back(tmp_path: Path) -> None:
    a, b = Replica("a"), Replica("b")
    fleet = Fleet([a, b])
    await fleet.load_adapter("v1", tmp_path)
    a.away = True
    assert [await said(fleet, "v1") for _ in range(6)] == ["b v1"] * 6
    await fleet.load_adapter("v2", tmp_path)
    assert await said(fleet, "v2") == "b v2"
    a.restart()
    await anyio.sleep(0.1)
    b.away = True
    for _ in range(3):  # what a lost it finds out when it is asked
        assert await said(fleet, "v2") == "a v2"
        assert await said(fleet, "v1") == "a v1"
    assert sorted(await a.adapters()) == ["v1", "v2"]


async def test_what_fails_again_and_again_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE", 60)
    only = Replica("a")
    only.away = True
    fleet = Fleet([only])
    for _ in range(breaker.TRIPS_AFTER):
        with pytest.raises(BackendUnavailable, match="refused"):
            await said(fleet)
    only.restart()
    with pytest.raises(BackendUnavailable, match="none of the 1 replicas"):
        await said(fleet)
    assert only.asked == 0
    monkeypatch.setattr(breaker.time, "monotonic", lambda now=breaker.time.monotonic: now() + 60)
    assert await said(fleet) == "a base"


async def test_nobody_is_there() -> None:
    a, b = Replica("a"), Replica("b")
    a.away = b.away = True
    fleet = Fleet([a, b])
    for _ in range(5):
        with pytest.raises(BackendUnavailable):
            await said(fleet)
    with pytest.raises(BackendUnavailable):
        await fleet.adapters()
    with pytest.raises(BackendUnavailable):
        await fleet.load_adapter("v1", Path("/"))


async def test_a_mismatch_on_one_refuses_the_adapter_everywhere(tmp_path: Path) -> None:
    a, b = Replica("a"), Replica("b")
    b.refuses = True
    fleet = Fleet([a, b])
    with pytest.raises(CanaryMismatch):
        await fleet.load_adapter("v1", tmp_path)
    assert await a.adapters() == []
    assert await fleet.adapters() == []
    b.refuses = False
    await fleet.load_adapter("v1", tmp_path)


async def test_one_that_came_back_wrong_gets_no_requests_for_the_adapter(tmp_path: Path) -> None:
    a, b = Replica("a"), Replica("b")
    fleet = Fleet([a, b])
    await fleet.load_adapter("v1", tmp_path)
    a.restart()
    a.refuses = True
    assert {await said(fleet, "v1") for _ in range(10)} == {"b v1"}
    assert "a base" in {await said(fleet) for _ in range(10)}


async def test_another_takes_over_a_stream_only_before_its_first_chunk() -> None:
    a, b = Replica("a"), Replica("b")
    fleet = Fleet([a, b])
    a.dies_after = 0
    assert "".join([chunk.text async for chunk in fleet.stream(ask())]) == "b base"
    a.dies_after = b.dies_after = 1
    chunks = fleet.stream(ask())
    assert (await anext(chunks)).text in ("a", "b")
    with pytest.raises(BackendUnavailable, match="cut"):
        await anext(chunks)


async def test_an_error_of_the_request_is_nobody_elses_business() -> None:
    a, b = Replica("a"), Replica("b")

    async def too_long(requests: Sequence[Request]) -> list[Generation]:
        raise PromptTooLong("too long")

    a.generate = too_long  # type: ignore[method-assign]
    with pytest.raises(PromptTooLong):
        await said(Fleet([a, b]))
    assert b.asked == 0


async def test_an_unloaded_adapter_does_not_come_back_with_a_replica(tmp_path: Path) -> None:
    a, b = Replica("a"), Replica("b")
    fleet = Fleet([a, b])
    await fleet.load_adapter("v1", tmp_path)
    a.away = True
    await fleet.unload_adapter("v1")
    a.restart()
    await said(fleet)
    assert await a.adapters() == await b.adapters() == []


def test_replicas_are_of_one_model() -> None:
    with pytest.raises(InvalidInput, match="m, n"):
        Fleet([Replica("a"), Replica("b", "n")])
    with pytest.raises(InvalidInput, match="none"):
        Fleet([])
