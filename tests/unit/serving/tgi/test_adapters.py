"""Adapters: never a name that was not proven, on the process that answers now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from asking import ask
from recordings import Reply, stream_reply, token
from replay_server import ReplayServer

from rag_tuned_memory.errors import AdapterNotLoaded, BackendUnavailable, CanaryMismatch, InvalidInput
from rag_tuned_memory.serving.base import CanaryPrompt, Continuation, Fingerprint
from rag_tuned_memory.serving.tgi import TgiBackend

pytestmark = pytest.mark.anyio
Serve = Callable[..., ReplayServer]
Connect = Callable[..., TgiBackend]
PATH = Path("somewhere/on/the/server")

SAYS = {None: [10, 11, 12, 13], "one": [20, 21, 22, 23], "two": [30, 31, 32, 33]}


class Tgi:
    """As TGI: a name that it does not know is answered from the base."""

    def __init__(self, *names: str, pause: float = 0.0) -> None:
        self.names = names
        self.pause = pause

    def __call__(self, body: dict[str, Any]) -> Reply:
        asked = body["parameters"].get("adapter_id")
        ids = SAYS[asked if asked in self.names else None]
        return stream_reply([token(f" {one}", id=one) for one in ids], pause=self.pause)


def fingerprint(name: str) -> Fingerprint:
    canaries = [
        CanaryPrompt(
            prompt=(("user", question),),
            answer="x",
            adapter_logprobs=(-0.1,),
            base_logprobs=(-5.0,),
            adapter_greedy=Continuation(ids=tuple(SAYS[name]), logprobs=(-0.5,) * 4),
            base_greedy=Continuation(ids=tuple(SAYS[None]), logprobs=(-0.5,) * 4),
        )
        for question in ("who", "why")
    ]
    return Fingerprint(canaries=tuple(canaries), tolerance=0.15, margin=4.9)


async def test_load_and_ask(serve: Serve, connect: Connect) -> None:
    server = serve(Tgi("one", "two"))
    backend = connect(server)
    await backend.load_adapter("two", PATH, fingerprint("two"))
    await backend.load_adapter("one", PATH, fingerprint("one"))
    assert await backend.adapters() == ["one", "two"]
    asked = [ask("q", "one"), ask("q"), ask("q", "two")]
    assert [(one.text, one.adapter) for one in await backend.generate(asked)] == [
        (" 20 21 22 23", "one"),
        (" 10 11 12 13", None),
        (" 30 31 32 33", "two"),
    ]
    assert [one["parameters"].get("adapter_id") for one in server.generated[:4]] == ["two", "two", "one", "one"]


@pytest.mark.parametrize("name", ["one", "two", "ONE", "one "])
async def test_a_name_that_is_not_held(name: str, serve: Serve, connect: Connect) -> None:
    """Not a byte is sent, though this server has the adapter."""
    server = serve(Tgi("one", "two"))
    backend = connect(server)
    for asked in (
        backend.generate([ask("a"), ask("q", name)]),
        backend.generate_one(ask("q", name)),
        backend.score(ask("q", name), ["x"]),
        anext(aiter(backend.stream(ask("q", name)))),
        backend.unload_adapter(name),
    ):
        with pytest.raises(AdapterNotLoaded, match=r"loaded: none"):
            await asked
    assert not server.requests


async def test_a_server_without_it(serve: Serve, connect: Connect) -> None:
    """TGI answers from the base and says nothing: the canary does."""
    backend = connect(serve(Tgi("two")))
    with pytest.raises(CanaryMismatch, match="one: it answers as the base model does"):
        await backend.load_adapter("one", PATH, fingerprint("one"))
    assert await backend.adapters() == []
    with pytest.raises(AdapterNotLoaded):
        await backend.generate([ask("q", "one")])


async def test_another_adapter_under_its_name(serve: Serve, connect: Connect) -> None:
    with pytest.raises(CanaryMismatch):
        await connect(serve(Tgi("one"))).load_adapter("one", PATH, fingerprint("two"))


async def test_names(serve: Serve, connect: Connect) -> None:
    server = serve(Tgi("one", pause=0.02))
    backend = connect(server)
    with pytest.raises(InvalidInput, match="needs a name"):
        await backend.load_adapter(" ", PATH, fingerprint("one"))
    with pytest.raises(InvalidInput, match="no fingerprint"):
        await backend.load_adapter("one", PATH)
    assert not server.requests
    refused: list[InvalidInput] = []

    async def load() -> None:
        try:
            await backend.load_adapter("one", PATH, fingerprint("one"))
        except InvalidInput as error:
            refused.append(error)

    async with anyio.create_task_group() as group:  # two at once: one of them loads it
        group.start_soon(load)
        group.start_soon(load)
    assert ["already loaded" in str(one) for one in refused] == [True]
    with pytest.raises(InvalidInput, match="already loaded"):
        await backend.load_adapter("one", PATH, fingerprint("one"))


async def test_a_load_that_fails_can_be_tried_again(serve: Serve, connect: Connect) -> None:
    server = serve(Tgi())
    backend = connect(server)
    with pytest.raises(CanaryMismatch):
        await backend.load_adapter("one", PATH, fingerprint("one"))
    server.answer = Tgi("one")
    await backend.load_adapter("one", PATH, fingerprint("one"))


async def test_unload_waits(serve: Serve, connect: Connect) -> None:
    """Requests that run finish with the adapter; new ones are refused at once."""
    server = serve(Tgi("one"))
    backend = connect(server)
    await backend.load_adapter("one", PATH, fingerprint("one"))
    server.answer = Tgi("one", pause=0.05)
    events: list[str] = []

    async def run() -> None:
        (done,) = await backend.generate([ask("q", "one")])
        events.append(done.text)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await anyio.sleep(0.05)
        group.start_soon(_note, events, "unloaded", backend.unload_adapter("one"))
        await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.01)
        assert await backend.adapters() == []
        with pytest.raises(AdapterNotLoaded):
            await backend.generate([ask("q", "one")])
    assert events == [" 20 21 22 23", "unloaded"]
    await backend.load_adapter("one", PATH, fingerprint("one"))


async def test_unload_waits_for_a_stream_that_is_given_up(serve: Serve, connect: Connect) -> None:
    server = serve(Tgi("one"))
    backend = connect(server)
    await backend.load_adapter("one", PATH, fingerprint("one"))
    stream = backend.stream(ask("q", "one"))
    await anext(aiter(stream))
    with anyio.move_on_after(0.1) as scope:
        await backend.unload_adapter("one")
    assert scope.cancelled_caught
    await stream.aclose()  # type: ignore[attr-defined]
    assert await backend.adapters() == []


async def test_a_restart_is_noticed(serve: Serve, connect: Connect) -> None:
    """Another process on the same port has to prove the adapter before it answers for it."""
    first = serve(Tgi("one"))
    backend = connect(first)
    await backend.load_adapter("one", PATH, fingerprint("one"))
    first.stop()
    second = serve(Tgi("one"), port=first.port)
    (done,) = await backend.generate([ask("q", "one")])
    assert done.text == " 20 21 22 23"
    asked = [one["inputs"].split("user\n")[1][:3] for one in second.generated]
    assert sorted(asked[:2]) == ["who", "why"], "the canaries came first"
    assert len(asked) == 3
    await backend.generate([ask("q", "one")])
    assert len(second.generated) == 4, "and only once"


async def test_a_restart_without_the_adapter(serve: Serve, connect: Connect) -> None:
    """The case that TGI hides: the base never answers for the adapter, not once."""
    first = serve(Tgi("one"))
    backend = connect(first)
    await backend.load_adapter("one", PATH, fingerprint("one"))
    first.stop()
    second = serve(Tgi(), port=first.port)
    with pytest.raises(CanaryMismatch):
        await backend.generate([ask("q", "one"), ask("q", "one")])
    assert not any("user\nq<" in one["inputs"] for one in second.generated)
    assert await backend.adapters() == []
    with pytest.raises(AdapterNotLoaded):
        await backend.generate([ask("q", "one")])
    assert (await backend.generate([ask("q")]))[0].text == " 10 11 12 13"


async def test_a_server_that_went_away(serve: Serve, connect: Connect) -> None:
    server = serve(Tgi("one"))
    backend = connect(server)
    await backend.load_adapter("one", PATH, fingerprint("one"))
    server.stop()
    with pytest.raises(BackendUnavailable, match="no connection"):
        await backend.generate([ask("q", "one")])
    assert await backend.adapters() == ["one"], "it is asked for again when the server is back"
    serve(Tgi("one"), port=server.port)
    assert (await backend.generate([ask("q", "one")]))[0].text == " 20 21 22 23"


async def _note(events: list[str], what: str, awaitable: Any) -> None:
    await awaitable
    events.append(what)
