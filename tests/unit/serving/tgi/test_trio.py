"""The client on trio."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from asking import ask
from recordings import reply, stream_reply, token
from replay_server import ReplayServer
from test_adapters import PATH, Tgi, fingerprint

from rag_tuned_memory.errors import BackendError, BackendUnavailable
from rag_tuned_memory.serving.tgi import TgiBackend, TimeLimits

pytestmark = pytest.mark.anyio
Serve = Callable[..., ReplayServer]
Connect = Callable[..., TgiBackend]


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


async def test_everything(serve: Serve, connect: Connect) -> None:
    server = serve(Tgi("one"))
    backend = connect(server)
    assert (await backend.health()).ready
    await backend.load_adapter("one", PATH, fingerprint("one"))
    done = await backend.generate([ask("q", "one"), ask("q")])
    assert [one.text for one in done] == [" 20 21 22 23", " 10 11 12 13"]
    await backend.unload_adapter("one")
    server.answer = reply("gen_details")
    with pytest.raises(BackendError, match="REQUEST_LOGPROBS"):
        await backend.score(ask("q"), ["x"])


async def test_giving_up(serve: Serve, connect: Connect) -> None:
    server = serve(stream_reply([token("a")] * 200, pause=0.05))
    backend = connect(server, timeout=TimeLimits(between_tokens=0.01))
    with pytest.raises(BackendUnavailable, match="hangs"):
        await backend.generate([ask("q")])
    assert await server.client_left()
    server.gone.clear()
    with anyio.move_on_after(0.3):
        await connect(server).generate([ask("q")])
    assert await server.client_left()
