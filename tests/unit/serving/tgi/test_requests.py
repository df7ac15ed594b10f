"""What goes out: one request as the wire sees it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from asking import ask
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.tgi import TgiBackend
from recordings import json_reply, stream_reply, token
from replay_server import ReplayServer

pytestmark = pytest.mark.anyio
Serve = Callable[..., ReplayServer]
Connect = Callable[..., TgiBackend]


async def test_greedy(serve: Serve, connect: Connect) -> None:
    server = serve()
    (done,) = await connect(server).generate([ask("hello", max_new_tokens=3)])
    assert done.text == "hi"
    (sent,) = server.generated
    assert sent["inputs"].endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    assert sent["stream"] is True
    assert sent["parameters"] == {
        "details": True,
        "do_sample": False,
        "max_new_tokens": 3,
        "return_full_text": False,
    }
