"""What comes in: text, tokens and ends, made for the awkward cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from asking import ask
from recordings import STREAM_HEAD, Reply, chunk, stream_reply, token
from replay_server import ReplayServer

from rag_tuned_memory.serving.base import Chunk
from rag_tuned_memory.serving.tgi import TgiBackend

pytestmark = pytest.mark.anyio
Serve = Callable[..., ReplayServer]
Connect = Callable[..., TgiBackend]


async def read(backend: TgiBackend, **settings: object) -> list[Chunk]:
    return [chunk async for chunk in backend.stream(ask("q", **settings))]


async def test_chunks(serve: Serve, connect: Connect) -> None:
    chunks = await read(connect(serve(stream_reply([token("a", id=1), token(" b", id=2)]))))
    assert [chunk.text for chunk in chunks] == ["a", " b", ""]
    done = chunks[-1].generation
    assert done is not None
    assert [chunk.generation for chunk in chunks[:-1]] == [None, None]
    assert (done.text, done.prompt_tokens, done.adapter) == ("a b", 5, None)
    assert 0 < done.seconds < 5
    assert all(math.isnan(one.entropy) for one in done.tokens)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
async def test_characters_that_some_take_for_line_ends(separator: str, serve: Serve, connect: Connect) -> None:
    text = f"one{separator}two"
    (done,) = await connect(serve(stream_reply([token(text)]))).generate([ask("q")])
    assert done.text == text


@pytest.mark.parametrize(
    "text", ["data: x", "\n\ndata: {}\n\n", "\r\n", "[DONE]", '{"error":"x"}', "<|im_end|>", "\x00", "😀"]
)
async def test_text_that_looks_like_the_protocol(text: str, serve: Serve, connect: Connect) -> None:
    (done,) = await connect(serve(stream_reply([token(text), token(".")]))).generate([ask("q")])
    assert done.text == text + "."


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_pieces_of_any_size(size: int, serve: Serve, connect: Connect) -> None:
    """Where the network cuts does not matter, not even inside a character."""
    whole = b"".join(
        piece.split(b"\r\n", 1)[1][:-2] for piece in stream_reply([token("日本"), token("é")]).pieces[1:-1]
    )
    pieces = [chunk(whole[at : at + size]) for at in range(0, len(whole), size)]
    (done,) = await connect(serve(Reply((STREAM_HEAD, *pieces, b"0\r\n\r\n")))).generate([ask("q")])
    assert done.text == "日本é"


async def test_events_without_a_space_and_with_comments(serve: Serve, connect: Connect) -> None:
    """TGI's source writes none, the server was seen to write one; comments keep idle streams open."""
    given = stream_reply([token("a"), token("b")])
    wire = b":\n\n".join(piece.split(b"\r\n", 1)[1][:-2] for piece in given.pieces[1:-1]).replace(b"data: ", b"data:")
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    (done,) = await connect(serve(Reply((head, wire), closed=True))).generate([ask("q")])
    assert done.text == "ab"


@pytest.mark.parametrize(
    ("texts", "stop", "shown"),
    [
        (["The end", ".", " More"], (".",), ["The end"]),
        (["The end.", " More"], (".",), ["The end"]),
        (["a<", "b", ">c"], ("<b>",), ["a"]),
        (["a<", "b", "c"], ("<b>",), ["a", "<bc"]),
        (["a<", "b"], ("<b>",), ["a", "<b"]),
        (["ab", "cd"], ("x", "cd", "bc"), ["a"]),
        (["1", "2", "3", "4", "5", "6"], ("w", "x", "y", "z", "5"), ["1", "2", "3", "4"]),
        ([".", "x"], (".",), []),
    ],
)
async def test_stop_strings(
    texts: list[str], stop: tuple[str, ...], shown: list[str], serve: Serve, connect: Connect
) -> None:
    """Never shown, not even their beginnings, also where TGI, which looks at whole tokens, goes on."""
    chunks = await read(connect(serve(stream_reply([token(one) for one in texts], reason="stop_sequence"))), stop=stop)
    assert [chunk.text for chunk in chunks if chunk.text] == shown
    done = chunks[-1].generation
    assert done is not None
    assert (done.text, done.finish_reason) == ("".join(shown), "stop")
    assert done.text == "" or done.tokens


async def test_a_stop_string_ends_the_stream_here(serve: Serve, connect: Connect) -> None:
    """The server is not left generating, and the prompt is counted here."""
    server = serve(stream_reply([token("a"), token("XY"), *[token("b")] * 100], pause=0.03))
    backend = connect(server)
    done = (await read(backend, stop=("X",)))[-1].generation
    assert done is not None
    assert (done.text, done.finish_reason, len(done.tokens)) == ("a", "stop", 2)
    assert done.prompt_tokens == len(await backend._folder.ids(ask("q").messages))
    assert await server.client_left()


async def test_no_text_at_all(serve: Serve, connect: Connect) -> None:
    chunks = await read(connect(serve(stream_reply([token("<|im_end|>", id=2, special=True)], reason="eos_token"))))
    (chunk,) = chunks
    assert chunk.generation is not None
    assert (chunk.generation.text, chunk.generation.finish_reason) == ("", "stop")
    assert [(one.id, one.text) for one in chunk.generation.tokens] == [(2, "")]


async def test_the_end_in_the_last_place(serve: Serve, connect: Connect) -> None:
    """TGI calls it "length"; the answer ended all the same."""
    tokens = [token("a"), token("<|im_end|>", id=2, special=True)]
    (done,) = await connect(serve(stream_reply(tokens, reason="length"))).generate([ask("q", max_new_tokens=2)])
    assert done.finish_reason == "stop"


async def test_unknown_log_probabilities(serve: Serve, connect: Connect) -> None:
    """A server that computes NaN writes null: nothing breaks, and nobody is told that the answer is sure."""
    tokens = [token("a"), token("b", logprob=None)]
    for order in (tokens, tokens[::-1]):
        (done,) = await connect(serve(stream_reply(order))).generate([ask("q")])
        assert done.text == "".join(one["text"] for one in order)
        assert done.confidence == 0
