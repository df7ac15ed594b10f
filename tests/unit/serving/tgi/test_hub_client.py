"""The hub's client of TGI servers, which is maintained, as the measure: the same requests, the same answers read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from asking import ask
from huggingface_hub import AsyncInferenceClient
from recordings import reply
from replay_server import ReplayServer

from rag_tuned_memory.serving.tgi import JsonGrammar, TgiBackend

pytestmark = pytest.mark.anyio
Serve = Callable[..., ReplayServer]
Connect = Callable[..., TgiBackend]
SCHEMA = {"properties": {"city": {"type": "string"}}}


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({}, {"do_sample": False}),
        ({"temperature": 0.5, "seed": 3}, {"do_sample": True, "temperature": 0.5, "seed": 3}),
        ({"stop": (".", "\n")}, {"do_sample": False, "stop": [".", "\n"]}),
    ],
)
async def test_the_same_request(
    settings: dict[str, Any], theirs: dict[str, Any], serve: Serve, connect: Connect
) -> None:
    server = serve(reply("stream_details"))
    (done,) = await connect(server).generate([ask("q", **settings)])
    prompt = server.generated[0]["inputs"]
    async with AsyncInferenceClient(base_url=server.url, api_key="x") as client:
        stream = await client.text_generation(
            prompt, details=True, stream=True, return_full_text=False, max_new_tokens=12, **theirs
        )
        events = [event async for event in stream]
    assert server.generated[0] == server.generated[1]
    assert [(one.id, one.text, one.logprob) for one in done.tokens] == [
        (event.token.id, event.token.text, event.token.logprob) for event in events[: len(done.tokens)]
    ], "as far as we read: a stop string ends it here"


async def test_the_same_grammar(serve: Serve, connect: Connect) -> None:
    server = serve(reply("stream_details"))
    await connect(server).generate_one(ask("q"), grammar=JsonGrammar(SCHEMA))
    prompt = server.generated[0]["inputs"]
    grammar: Any = {"type": "json", "value": SCHEMA}
    async with AsyncInferenceClient(base_url=server.url, api_key="x") as client:
        stream = await client.text_generation(
            prompt,
            details=True,
            stream=True,
            return_full_text=False,
            max_new_tokens=12,
            do_sample=False,
            grammar=grammar,
        )
        assert [event async for event in stream]
    assert server.generated[0] == server.generated[1]


async def test_the_same_score(serve: Serve, connect: Connect) -> None:
    server = serve(reply("gen_details_decoder_input"))
    with pytest.raises(Exception, match="REQUEST_LOGPROBS"):
        await connect(server).score(ask("q"), ["x"])
    async with AsyncInferenceClient(base_url=server.url, api_key="x") as client:
        await client.text_generation(
            server.generated[0]["inputs"],
            details=True,
            decoder_input_details=True,
            return_full_text=False,
            max_new_tokens=1,
            do_sample=False,
        )
    assert server.generated[0] == server.generated[1]
