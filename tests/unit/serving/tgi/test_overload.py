"""A server that takes no more requests now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from asking import ask
from recordings import Reply, chunk, reply, stream_reply, token
from replay_server import ReplayServer

from rag_tuned_memory.errors import BackendOverloaded
from rag_tuned_memory.serving.tgi import TgiBackend, TimeLimits

pytestmark = pytest.mark.anyio
Serve = Callable[..., ReplayServer]
Connect = Callable[..., TgiBackend]


class Full:
    """Overloaded ``times`` times, then answers."""

    def __init__(self, case: str, times: int) -> None:
        self.case = case
        self.left = times

    def __call__(self, body: dict[str, Any]) -> Reply:
        if self.left:
            self.left -= 1
            return reply(self.case)
        return stream_reply([token("at last")])


@pytest.mark.parametrize("case", ["overload_root", "overload_root_stream"])
async def test_tried_again(case: str, serve: Serve, connect: Connect) -> None:
    """With status 429, and with 200 and an error in the stream."""
    server = serve(Full(case, 2))
    (done,) = await connect(server).generate([ask("q")])
    assert done.text == "at last"
    assert len(server.generated) == 3


@pytest.mark.parametrize("case", ["overload_root", "overload_root_stream"])
async def test_given_up(case: str, serve: Serve, connect: Connect) -> None:
    server = serve(Full(case, 100))
    with pytest.raises(BackendOverloaded, match="another replica"):
        await connect(server, max_tries=3).generate([ask("q")])
    assert len(server.generated) == 3


async def test_given_up_in_time(serve: Serve, connect: Connect) -> None:
    server = serve(Full("overload_root", 10_000))
    limits = TimeLimits(total=0.5)
    with pytest.raises(BackendOverloaded):
        await connect(server, max_tries=10_000, timeout=limits).generate([ask("q")])
    assert 1 < len(server.generated) < 100


async def test_no_other_error_is_tried_again(serve: Serve, connect: Connect) -> None:
    server = serve(reply("shardkill_generate"))
    with pytest.raises(Exception, match="transport error"):
        await connect(server).generate([ask("q")])
    assert len(server.generated) == 1


async def test_never_after_text_was_shown(serve: Serve, connect: Connect) -> None:
    """Half an answer is not begun anew."""
    begun = stream_reply([token("half")], ends=False)
    error = chunk(b'data: {"error":"Model is overloaded","error_type":"overloaded"}\n\n')
    server = serve(Reply((*begun.pieces, error, b"0\r\n\r\n")))
    with pytest.raises(BackendOverloaded):
        await connect(server).generate([ask("q")])
    assert len(server.generated) == 1


async def test_scoring(serve: Serve, connect: Connect) -> None:
    server = serve(Full("overload_root", 10))
    with pytest.raises(BackendOverloaded):
        await connect(server, max_tries=2).score(ask("q"), ["x"])
    assert len(server.generated) == 2
