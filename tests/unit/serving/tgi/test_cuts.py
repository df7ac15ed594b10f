"""Connections that end too early: at every byte of a recorded answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from asking import ask
from recordings import Reply, reply
from replay_server import ReplayServer

from rag_tuned_memory.errors import BackendError, BackendUnavailable
from rag_tuned_memory.serving.base import Chunk
from rag_tuned_memory.serving.tgi import TgiBackend

pytestmark = pytest.mark.anyio
Serve = Callable[..., ReplayServer]
Connect = Callable[..., TgiBackend]

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CASE = "stream_stop"
WIRE = reply(CASE).wire
LAST_EVENT = WIRE.index(b"\n\n", WIRE.index(b'"details":{')) + 1
"""Length from which on the last event is there: what comes after it adds nothing."""


@pytest.mark.parametrize("first", range(0, 16))
async def test_at_every_byte(first: int, serve: Serve, connect: Connect) -> None:
    server = serve()
    backend = connect(server)
    await backend.check()
    for length in range(first, len(WIRE), 16):
        server.answer = Reply((WIRE[:length],), closed=True)
        if length >= LAST_EVENT:
            (done,) = await backend.generate([ask("q")])
            assert (done.text, done.finish_reason) == (" Paris.", "stop")
            continue
        # Without the end of the headers there is nothing; after it, what was cut off is missing.
        with pytest.raises(BackendUnavailable, match=r"was cut|cut the answer"):
            await backend.generate([ask("q")])


async def test_of_an_error(serve: Serve, connect: Connect) -> None:
    """An error that is cut off stays the error that its status says, or a cut connection."""
    server = serve()
    backend = connect(server, max_tries=1)
    wire = reply("bad_top_p_1").wire
    for length in range(0, len(wire), 7):
        server.answer = Reply((wire[:length],), closed=True)
        with pytest.raises(BackendUnavailable, match="was cut"):
            await backend.generate([ask("q")])


async def test_after_some_text(serve: Serve, connect: Connect) -> None:
    """What was shown was shown; the end is an error, never an answer that looks whole."""
    wire = reply("stream_plain")
    server = serve(Reply(wire.pieces[:4], closed=True))
    shown: list[Chunk] = []

    async def read() -> None:
        async for chunk in connect(server).stream(ask("q")):
            shown.append(chunk)

    with pytest.raises(BackendError):
        await read()
    assert [(one.text, one.generation) for one in shown] == [(" Paris", None), (".", None), ("\n", None)]


async def test_a_kept_connection_that_the_server_closed(serve: Serve, connect: Connect) -> None:
    """The next request opens a new one."""
    server = serve(reply(CASE))
    backend = connect(server)
    await backend.check()
    server.answer = Reply(reply(CASE).pieces, closed=True)
    for _ in range(3):
        (done,) = await backend.generate([ask("q")])
        assert done.text == " Paris."


async def test_a_refused_answer_is_not_left_open(serve: Serve, connect: Connect) -> None:
    """The rest of an answer that is none is not waited for, and its connection is closed."""
    head, body = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 9\r\n\r\n", b"<html>..."
    server = serve(Reply((head, body), pause=5))
    with pytest.raises(BackendError, match="a stream was asked for, text/html came"):
        await connect(server).generate([ask("q")])
    assert await server.client_left()


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
        b"HTTP/1.1 9999 ?\r\n\r\n",
        STREAM + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\nabcd",
        STREAM + b"transfer-encoding: chunked\r\n\r\nZZ\r\nabc",
        b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere.invalid/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
)
async def test_what_is_no_http_or_no_tgi(wire: bytes, serve: Serve, connect: Connect) -> None:
    backend = connect(serve(Reply((wire,), closed=True)))
    with pytest.raises(BackendError):
        await backend.generate([ask("q")])


@pytest.mark.parametrize(
    "event",
    [
        b"data: nothing\n\n",
        b"data: \xff\xfe\n\n",
        b"data: []\n\n",
        b"data: 5\n\n",
        b"data: null\n\n",
        b"data: {}\n\n",
        b'data: {"token":5}\n\n',
        b'data: {"token":[]}\n\n',
        b'data: {"token":{"id":"1","text":"a","special":false}}\n\n',
        b'data: {"token":{"id":1,"text":null,"special":false}}\n\n',
        b'data: {"error":{"message":"x"}}\n\n',
        b'data: {"error":"x","error_type":"never heard of"}\n\n',
        b'data: {"error":"x","error_type":["list"]}\n\n',
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"data: [DONE]\n\n",
        b": only a comment\n\n",
        b"event: x\nid: 1\nretry: 5\n\n",
        b"\n" * 100,
        b"data: " + b"x" * (5 << 20),
    ],
)
async def test_events_that_are_none(event: bytes, serve: Serve, connect: Connect) -> None:
    backend = connect(serve(Reply((STREAM + b"\r\n", event), closed=True)))
    with pytest.raises(BackendError):
        await backend.generate([ask("q")])
