from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from chat_endpoint_double import ChatEndpointDouble, chat_endpoint_double, completion

from rag_tuned_memory.errors import (
    AdapterNotLoaded,
    BackendError,
    BackendUnavailable,
    InvalidInput,
    PromptTooLong,
    RagTunedMemoryError,
)
from rag_tuned_memory.recall.budget import estimate_tokens
from rag_tuned_memory.serving.base import Generation, Message, Request
from rag_tuned_memory.serving.openai_compatible import OpenAICompatible

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def connect(double: ChatEndpointDouble, **settings: Any) -> OpenAICompatible:
    return OpenAICompatible(double.url, "big-model", **{"max_retries": 0, "timeout": 10.0, **settings})


def counted(text: str, prompt: int, answer: int, finish: str = "stop") -> dict[str, Any]:
    body = completion(text) | {"usage": {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": 0}}
    body["choices"][0]["finish_reason"] = finish
    return body


def events(*bodies: Any, done: bool = True) -> bytes:
    lines = [b"data: " + (one if isinstance(one, bytes) else json.dumps(one).encode()) for one in bodies]
    return b"\n\n".join([*lines, *([b"data: [DONE]"] if done else [])]) + b"\n\n"


def piece(text: str | None, finish: str | None = None) -> dict[str, Any]:
    return {"id": "c", "object": "x", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


async def read(backend: OpenAICompatible, request: Request) -> tuple[list[str], Generation]:
    chunks = [chunk async for chunk in backend.stream(request)]
    assert chunks[-1].generation is not None
    return [chunk.text for chunk in chunks[:-1]], chunks[-1].generation


async def test_it_asks_as_openai_clients_do() -> None:
    request = Request((Message("system", "Be short."), Message("user", "Who?")), None, 7, 0.5, 3, ("\n",))
    with chat_endpoint_double((200, counted("Ana did.", 21, 4)), (200, counted("And", 21, 7, "length"))) as double:
        backend = connect(double, key="secret")
        answer, cut = await backend.generate([request, ask("who")])
        await backend.close()
    body = next(one for one in double.bodies if "stop" in one)
    assert body["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who?"}]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("big-model", 7, 0.5)
    assert (body["seed"], body["stop"]) == (3, ["\n"])
    greedy = next(one for one in double.bodies if "stop" not in one)
    assert (greedy["temperature"], "seed" in greedy) == (0.0, False)
    assert double.headers[0]["authorization"] == "Bearer secret"
    found = {one.text: one for one in (answer, cut)}
    assert (found["Ana did."].finish_reason, found["And"].finish_reason) == ("stop", "length")
    assert (len(found["Ana did."].tokens), found["Ana did."].prompt_tokens, answer.adapter) == (4, 21, None)


async def test_what_an_endpoint_does_not_tell_is_unknown() -> None:
    with chat_endpoint_double((200, completion("Ana did."))) as double:
        backend = connect(double)
        [answer] = await backend.generate([ask("who")])
        await backend.close()
    assert "".join(token.text for token in answer.tokens) == answer.text == "Ana did."
    assert len(answer.tokens) == estimate_tokens(["Ana did."])[0]
    assert answer.prompt_tokens == estimate_tokens(["who"])[0]
    assert answer.confidence == 0
    assert math.isnan(answer.entropy)
    assert {token.id for token in answer.tokens} == {-1}


async def test_answers_keep_the_order_of_the_requests() -> None:
    with chat_endpoint_double((200, completion("same"))) as double:
        backend = connect(double, max_concurrent=2)
        answers = await backend.generate([ask(str(number), max_new_tokens=number + 1) for number in range(9)])
        await backend.close()
    assert len(answers) == len(double.bodies) == 9
    assert await backend.generate([]) == []


async def test_a_stream() -> None:
    usage = {"id": "c", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}}
    stream = events(piece(None), piece("Ana "), piece("did 🌟"), piece("", "length"), usage)
    with chat_endpoint_double((200, stream)) as double:
        backend = connect(double)
        shown, answer = await read(backend, ask("who"))
        await backend.close()
    assert shown == ["Ana ", "did 🌟"]
    assert (answer.text, answer.finish_reason, len(answer.tokens)) == ("Ana did 🌟", "length", 3)
    assert double.bodies[0]["stream"] is True


@pytest.mark.parametrize(
    ("stream", "kind", "message"),
    [
        (events(piece("Ana "), done=False), BackendUnavailable, "ended before the answer did"),
        (events(piece("Ana ")), BackendUnavailable, "ended before the answer did"),
        (b"", BackendUnavailable, "ended before the answer did"),
        (events(piece("Ana "), b"{nonsense"), BackendError, "no chat completion"),
        (events(piece("Ana "), {"choices": [{"delta": None}]}), BackendError, "no chat completion"),
        (events({"error": {"message": "overloaded", "http_status_code": 422}}), BackendUnavailable, "overloaded"),
        (events({"error": {"message": "no such tool", "code": 422}}), BackendError, "no such tool"),
    ],
)
async def test_streams_that_fail(stream: bytes, kind: type[Exception], message: str) -> None:
    with chat_endpoint_double((200, stream)) as double:
        backend = connect(double)
        with pytest.raises(kind, match=message):
            await read(backend, ask("who"))
        await backend.close()


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ((401, {"error": {"message": "no"}}), BackendError, "Set the API key"),
        ((404, {"error": {"message": "no such"}}), BackendError, r"no model 'big-model'.*no such"),
        ((429, {"error": {"message": "slow"}}), BackendUnavailable, "Try again later"),
        ((500, b"<html>"), BackendUnavailable, "<html>"),
        ((400, {"error": {"message": "maximum context length"}}), PromptTooLong, "Shorten the prompt"),
        ((422, {"error": {"message": "odd"}}), BackendError, "odd"),
        ((200, {"choices": []}), BackendError, "no chat completion"),
        ((200, b"not json"), BackendError, "no chat completion"),
        ((200, {"choices": [{"message": 5}]}), BackendError, "no chat completion"),
    ],
)
async def test_failures_are_ours(answer: tuple[int, Any], kind: type[BackendError], message: str) -> None:
    with chat_endpoint_double(answer) as double:
        backend = connect(double, key="secret-key")
        with pytest.raises(kind, match=message) as caught:
            await backend.generate([ask("who")])
        await backend.close()
    assert "secret-key" not in str(caught.value)
    assert double.url in str(caught.value)


async def test_adapters_and_scores_are_refused_before_anything_is_sent() -> None:
    with chat_endpoint_double((200, completion("no"))) as double:
        backend = connect(double)
        calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
            (lambda: backend.generate([ask("who"), ask("who", "a")]), AdapterNotLoaded, "no adapter 'a'"),
            (lambda: backend.generate([ask("who", "")]), AdapterNotLoaded, "no adapter ''"),
            (lambda: read(backend, ask("who", "a")), AdapterNotLoaded, "no adapter 'a'"),
            (lambda: backend.load_adapter("a", Path("a")), BackendError, "Adapters are served by LocalBackend"),
            (lambda: backend.unload_adapter("a"), AdapterNotLoaded, "no adapter 'a'"),
            (lambda: backend.score(ask("who"), ["x"]), BackendError, "cannot score given text"),
        ]
        for call, kind, message in calls:
            with pytest.raises(kind, match=message):
                await call()
        assert await backend.adapters() == []
        await backend.close()
    assert double.bodies == []


@pytest.mark.parametrize(
    "request_", [Request(()), ask("\ud800"), ask("who", stop=("\ud800",)), ask("who", max_new_tokens=0)]
)
async def test_bad_requests_are_refused(request_: Request) -> None:
    with chat_endpoint_double((200, completion("no"))) as double:
        backend = connect(double)
        with pytest.raises(InvalidInput):
            await backend.generate([request_])
        with pytest.raises(InvalidInput):
            await read(backend, request_)
        await backend.close()
    assert double.bodies == []


async def test_counting(tiny_model: Path) -> None:
    texts = ["the disk was full", ""]
    estimating = OpenAICompatible("http://localhost:1/v1", "m")
    assert await estimating.count_tokens(texts) == estimate_tokens(texts)
    exact = OpenAICompatible("http://localhost:1/v1", "m", folder=tiny_model)
    from rag_tuned_memory.serving.folder import ModelFolder

    assert await exact.count_tokens(texts) == await ModelFolder(tiny_model).count(texts)
    assert exact.base_model == "m"
    for backend in (estimating, exact):
        await backend.close()


async def test_a_closed_one_says_so() -> None:
    backend = OpenAICompatible("http://localhost:1/v1", "m")
    await backend.close()
    for call in (lambda: backend.generate([ask("who")]), lambda: read(backend, ask("who"))):
        with pytest.raises(BackendUnavailable, match="closed"):
            await call()


@pytest.mark.parametrize(("url", "model"), [("", "m"), ("http://localhost:1/v1", ""), ("http://x/v1", None)])
def test_what_names_no_endpoint(url: str, model: Any) -> None:
    with pytest.raises(RagTunedMemoryError):
        OpenAICompatible(url, model)
