"""Whatever a server does not do, a call ends; and a call that is given up ends on the server."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import anyio
import pytest
from asking import ask
from recordings import STREAM_HEAD, Reply, chunk, reply, stream_reply, token
from replay_server import ReplayServer

from rag_tuned_memory.errors import BackendUnavailable
from rag_tuned_memory.serving.tgi import TgiBackend, TimeLimits

pytestmark = pytest.mark.anyio
Serve = Callable[..., ReplayServer]
Connect = Callable[..., TgiBackend]


def limits(**seconds: float) -> TimeLimits:
    return TimeLimits(**{"connect": 2, "first_token": 5, "between_tokens": 5, "total": 5, "probe": 2, **seconds})


async def ends(backend: TgiBackend, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match=message):
        await backend.generate([ask("q")])
    assert time.monotonic() - began < 1.5


async def test_no_first_token(serve: Serve, connect: Connect) -> None:
    server = serve(lambda body: None)
    await ends(connect(server, timeout=limits(first_token=0.2)), "hangs: the first token")
    assert await server.client_left()


async def test_only_headers(serve: Serve, connect: Connect) -> None:
    server = serve(stream_reply([], ends=False))
    await ends(connect(server, timeout=limits(first_token=0.2)), "the first token")


async def test_comments_are_no_tokens(serve: Serve, connect: Connect) -> None:
    """A router whose model hangs keeps the stream open by comments, as recorded in ``stall_stream``."""
    pieces = [STREAM_HEAD, *stream_reply([token("a")], ends=False).pieces[1:], *[chunk(b":\n\n")] * 40]
    server = serve(Reply(tuple(pieces), pause=0.05))
    await ends(connect(server, timeout=limits(between_tokens=0.3)), "hangs: the next token")
    assert await server.client_left()


async def test_a_slow_but_steady_stream_is_let_be(serve: Serve, connect: Connect) -> None:
    server = serve(stream_reply([token("a")] * 8, pause=0.1))
    (done,) = await connect(server, timeout=limits(between_tokens=0.6)).generate([ask("q")])
    assert done.text == "aaaaaaaa"


async def test_in_all(serve: Serve, connect: Connect) -> None:
    server = serve(stream_reply([token("a")] * 100, pause=0.05))
    await ends(connect(server, timeout=limits(total=0.4)), "hangs: the next token")


async def test_waiting_for_a_slot_is_not_the_servers_time(serve: Serve, connect: Connect) -> None:
    server = serve(stream_reply([token("a")] * 4, pause=0.05))
    server.routes["GET", "/info"] = reply("auth_missing_info")  # two at once
    done = await connect(server, timeout=limits(total=0.6)).generate([ask("q")] * 10)
    assert len(done) == 10


async def test_a_server_that_hangs_at_info(serve: Serve, connect: Connect) -> None:
    server = serve()
    server.routes["GET", "/info"] = lambda body: None
    await ends(connect(server, timeout=limits(probe=0.2)), "an answer from /info")


async def test_a_port_that_takes_connections_and_says_nothing(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        await ends(connect(url, timeout=limits(probe=0.2)), "an answer from /info")


async def test_a_closed_port(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    await ends(connect(f"http://127.0.0.1:{port}"), "no connection.*port is closed")


async def test_a_host_that_is_none(connect: Connect) -> None:
    with pytest.raises(BackendUnavailable, match="no connection"):
        await connect("http://no-such-host.invalid:8080").generate([ask("q")])


async def test_scoring(serve: Serve, connect: Connect) -> None:
    with pytest.raises(BackendUnavailable, match="hangs: the answer"):
        await connect(serve(lambda body: None), timeout=limits(total=0.3)).score(ask("q"), ["x"])


@pytest.mark.parametrize("how", ["aclose", "cancel", "asyncio"])
async def test_giving_up_a_stream(how: str, serve: Serve, connect: Connect) -> None:
    """The connection is closed, by which a TGI server stops generating at once (recorded)."""
    server = serve(stream_reply([token("a")] * 200, pause=0.05))
    backend = connect(server)
    seen = anyio.Event()

    async def read() -> None:
        stream = backend.stream(ask("q"))
        async for _ in stream:
            seen.set()
            if how == "aclose":
                await stream.aclose()  # type: ignore[attr-defined]
                return

    if how == "asyncio":
        task = asyncio.create_task(read())
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await seen.wait()
            if how == "cancel":
                group.cancel_scope.cancel()
    assert await server.client_left()
    server.answer = stream_reply([token("fine")])
    assert (await backend.generate([ask("q")]))[0].text == "fine"


async def test_giving_up_before_the_first_token(serve: Serve, connect: Connect) -> None:
    server = serve(lambda body: None)
    backend = connect(server)
    await backend.check()
    with anyio.move_on_after(0.2):
        await backend.generate([ask("q"), ask("q")])
    assert await server.client_left()


async def test_slots_come_back(serve: Serve, connect: Connect) -> None:
    """After many requests that were given up or failed, as many as ever may be sent."""
    server = serve(lambda body: None)
    server.routes["GET", "/info"] = reply("auth_missing_info")
    backend = connect(server)
    await backend.check()
    for _ in range(5):
        with anyio.move_on_after(0.05):
            await backend.generate([ask("q")] * 3)
    with anyio.fail_after(10):
        server.answer = reply("bad_top_p_1")
        for _ in range(5):
            with pytest.raises(ValueError, match="top_p"):
                await backend.generate([ask("q")])
        server.answer = stream_reply([token("fine")])
        assert len(await backend.generate([ask("q")] * 5)) == 5


async def test_close(serve: Serve, connect: Connect) -> None:
    """Those who wait get an error, and so does everybody later."""
    server = serve(stream_reply([token("a")] * 200, pause=0.05))
    backend = connect(server)
    await backend.check()
    failed: list[str] = []

    async def run() -> None:
        try:
            await backend.generate([ask("q")])
        except BackendUnavailable as error:
            failed.append(error.message)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(run)
        await anyio.sleep(0.2)
        await backend.close()
    assert failed == ["the backend was closed"] * 3
    assert await server.client_left()
    for later in (
        backend.generate([ask("q")]),
        backend.score(ask("q"), ["x"]),
        backend.adapters(),
        backend.health(),
        backend.count_tokens(["x"]),
        backend.check(),
        anext(aiter(backend.stream(ask("q")))),
    ):
        with pytest.raises(BackendUnavailable, match="was closed"):
            await later
    await backend.close()


async def test_close_in_the_middle_of_a_stream(serve: Serve, connect: Connect) -> None:
    backend = connect(serve(stream_reply([token("a")] * 200, pause=0.02)))
    stream = aiter(backend.stream(ask("q")))
    await anext(stream)
    await backend.close()
    with pytest.raises(BackendUnavailable, match="was closed"):
        async for _ in stream:
            pass


async def test_an_answer_without_end_of_stream(serve: Serve, connect: Connect) -> None:
    """The last event is the answer; a server that then does not end the stream costs its connection, not the answer."""
    whole = stream_reply([token("a")])
    server = serve(Reply(whole.pieces[:-1]))
    (done,) = await connect(server).generate([ask("q")])
    assert done.text == "a"
