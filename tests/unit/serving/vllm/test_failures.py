from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from asking import ask
from vllm_double import END, VllmDouble

from rag_tuned_memory.errors import BackendError, BackendUnavailable, InvalidInput, RagTunedMemoryError
from rag_tuned_memory.serving.base import Request
from rag_tuned_memory.serving.vllm import VllmBackend

pytestmark = pytest.mark.anyio
COMPLETIONS = "/v1/completions"


def error(message: str, status: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": "Kind", "param": None, "code": status}}


async def read(backend: VllmBackend, request: Request) -> str:
    return "".join([chunk.text async for chunk in backend.stream(request)])


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, error("Token id 9 is out of vocabulary", 400), BackendError, "refused the request: Token id 9"),
        (401, {"error": "Unauthorized"}, BackendError, r"refused the key \(401\)\. Set api_key"),
        (403, b"", BackendError, "refused the key"),
        (404, error("The model `base` does not exist.", 404), BackendError, "no model"),
        (413, b"too much", RagTunedMemoryError, "too much"),
        (422, {"detail": [{"msg": "odd"}]}, BackendError, "odd"),
        (429, error("slow down", 429), BackendUnavailable, "slow down"),
        (500, error("EngineCore encountered an issue.", 500), BackendUnavailable, "EngineCore encountered"),
        (502, b"<html>Bad gateway</html>", BackendUnavailable, "Try again later"),
        (503, b"", BackendUnavailable, "Try again later"),
        (200, b"<html>hello</html>", BackendError, "reply is no completion"),
        (200, b"", BackendError, "reply is no completion"),
        (200, {"choices": []}, BackendError, "reply is no completion"),
        (200, [], BackendError, "reply is no completion"),
        (0, b"", BackendUnavailable, "no connection, or it was cut"),
    ],
)
async def test_failures_are_ours(
    backend: VllmBackend, double: VllmDouble, status: int, body: Any, kind: type[Exception], message: str
) -> None:
    for call in (
        lambda: backend.generate([ask("who")]),
        lambda: backend.score(ask("who"), ["x"]),
    ):
        double.fail(COMPLETIONS, status, body)
        with pytest.raises(kind, match=message) as caught:
            await call()
        assert double.url in str(caught.value)
    double.fail(COMPLETIONS, status, body)
    with pytest.raises(RagTunedMemoryError):
        await read(backend, ask("who"))
    assert (await backend.generate([ask("who")]))[0].text  # the next one is fine


def changed(**values: Any) -> Callable[[dict[str, Any]], Any]:
    def change(reply: dict[str, Any]) -> Any:
        reply["choices"][0].update(values)
        return reply

    return change


def with_logprobs(**values: Any) -> Callable[[dict[str, Any]], Any]:
    def change(reply: dict[str, Any]) -> Any:
        reply["choices"][0]["logprobs"].update(values)
        return reply

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed(logprobs=None),
        changed(logprobs=5),
        changed(logprobs={}),
        changed(finish_reason=None),
        with_logprobs(tokens=["The", " end"]),
        with_logprobs(tokens=["token_id:x"]),
        with_logprobs(tokens=[]),
        with_logprobs(token_logprobs=[None] * 7),
        with_logprobs(token_logprobs=["x"] * 7),
        with_logprobs(top_logprobs=["x"] * 7),
        lambda reply: json.dumps(reply).replace("-1.", "NaN, -1.", 1).encode(),
        lambda reply: {"choices": [None]},
        lambda reply: {"choices": "x"},
        lambda reply: {},
        lambda reply: json.dumps(reply)[:-20].encode(),
    ],
)
async def test_replies_in_another_form(
    backend: VllmBackend, double: VllmDouble, change: Callable[[dict[str, Any]], Any]
) -> None:
    double.change = change
    with pytest.raises(BackendError):
        await backend.generate([ask("who")])


async def test_scores_of_other_tokens_are_refused(backend: VllmBackend, double: VllmDouble) -> None:
    def other(reply: dict[str, Any]) -> dict[str, Any]:
        reply["choices"][0]["logprobs"]["tokens"][-1] = "token_id:7"
        return reply

    double.change = other
    with pytest.raises(BackendError, match="no completion"):
        await backend.score(ask("who"), ["the disk"])


async def test_an_answer_that_the_server_broke_off(backend: VllmBackend, double: VllmDouble) -> None:
    double.change = changed(finish_reason="abort")
    with pytest.raises(BackendUnavailable, match=r"broke the answer off \(abort\)"):
        await backend.generate([ask("who")])


async def test_a_passing_failure_is_tried_again(connect: Callable[..., VllmBackend], double: VllmDouble) -> None:
    backend = connect(max_retries=2)
    for status, body in ((429, b""), (503, error("busy", 503)), (0, b"")):
        double.requests.clear()
        double.fail(COMPLETIONS, status, body, headers={"retry-after-ms": "5"})
        assert (await backend.generate([ask("who")]))[0].text
        assert len(double.sent(COMPLETIONS)) == 2


async def test_tries_end_with_the_time(connect: Callable[..., VllmBackend], double: VllmDouble) -> None:
    backend = connect(max_retries=50, timeout=1.0)
    await backend.count_tokens(["x"])  # the tokenizer is loaded
    double.fail(COMPLETIONS, 503, b"", times=100, headers={"retry-after": "30"})
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="no answer within 1 seconds"):
        await backend.generate([ask("who")])
    assert time.monotonic() - began < 3


async def test_a_server_that_is_not_there(tiny_model: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        backend = VllmBackend(f"http://127.0.0.1:{free.getsockname()[1]}", tiny_model, max_retries=0)
    for call in (lambda: backend.generate([ask("who")]), lambda: read(backend, ask("who")), backend.adapters):
        with pytest.raises(BackendUnavailable, match="Check that it runs"):
            await call()
    assert (await backend.health()).state == "refused"
    await backend.close()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"])
async def test_a_server_that_hangs(tiny_model: Path, said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def take() -> None:
            try:
                while True:
                    connection, _ = listening.accept()
                    kept.append(connection)
                    connection.sendall(said)
            except OSError:
                return

        kept: list[socket.socket] = []
        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        backend = VllmBackend(f"http://127.0.0.1:{listening.getsockname()[1]}", tiny_model, timeout=0.5, max_retries=0)
        await backend.count_tokens(["x"])
        for call in (lambda: backend.generate([ask("who")]), lambda: read(backend, ask("who")), backend.adapters):
            began = time.monotonic()
            with pytest.raises(BackendUnavailable):
                await call()
            assert time.monotonic() - began < 3
        health = await backend._server.health(seconds=0.3)
        assert (health.state, health.ready) == ("hung", False)
        await backend.close()
        for connection in kept:
            connection.close()
        listening.shutdown(socket.SHUT_RDWR)  # wakes the thread
        thread.join(5)


async def test_a_stream_that_stalls(connect: Callable[..., VllmBackend], double: VllmDouble) -> None:
    backend = connect(timeout=0.6)
    await backend.count_tokens(["x"])
    double.gate.clear()
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="no answer within"):
        await read(backend, ask("who"))
    assert time.monotonic() - began < 4


async def test_a_stream_cut_anywhere_is_an_error_and_never_a_short_answer(
    backend: VllmBackend, double: VllmDouble
) -> None:
    double.answer = lambda body: [300, 301, END]
    whole = await read(backend, ask("who"))
    ends = 0
    for position in range(0, 1400, 23):
        double.cut_stream_at = position
        try:
            assert await read(backend, ask("who")) == whole
            ends += 1
        except BackendUnavailable:
            assert ends == 0  # once the last piece is there, nothing after it is needed
    assert ends > 0


@pytest.mark.parametrize(
    ("event", "kind", "message"),
    [
        (b'data: {"error":{"message":"engine died","type":"E","code":500}}\n\n', BackendUnavailable, "engine died"),
        (b'data: {"error":{"message":"engine died"}}\n\n', BackendUnavailable, "engine died"),
        (b'data: {"error":{"message":"bad grammar","code":400}}\n\n', BackendError, "bad grammar"),
        (b"data: {nonsense\n\n", BackendError, "no completion"),
        (b'data: {"choices":5}\n\n', BackendError, "no completion"),
        (b"", BackendUnavailable, "ended before the answer did"),
        (b": a comment\n\n", BackendUnavailable, "ended before the answer did"),
    ],
)
async def test_events_inside_of_a_stream(
    backend: VllmBackend, double: VllmDouble, event: bytes, kind: type[Exception], message: str
) -> None:
    double.stream_event = event
    with pytest.raises(kind, match=message):
        await read(backend, ask("who"))


async def test_the_key_goes_to_its_server_and_into_no_message(
    connect: Callable[..., VllmBackend], double: VllmDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-another-endpoint")
    double.key = "s3cret"
    assert (await connect(api_key="s3cret").generate([ask("who")]))[0].text
    with pytest.raises(BackendError, match="Set api_key") as caught:
        await connect(api_key="wr0ng").generate([ask("who")])
    assert "wr0ng" not in str(caught.value)
    with pytest.raises(BackendError, match="Set api_key"):
        await connect().generate([ask("who")])
    assert not any("another" in headers["authorization"] for headers in double.headers)


async def test_an_address_with_a_password_is_not_shown(double: VllmDouble, tiny_model: Path) -> None:
    url = double.url.replace("http://", "http://me:s3cret@") + "/v1/?token=s3cret"
    backend = VllmBackend(url, tiny_model, max_retries=0)
    assert "s3cret" not in backend._server.place
    await backend.close()


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://host:port", 5])
def test_addresses_that_are_none(tiny_model: Path, url: Any) -> None:
    with pytest.raises(InvalidInput, match="http://host:8000"):
        VllmBackend(url, tiny_model)


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"max_retries": -1}, {"max_concurrent": 0}, {"top_logprobs": -1}])
def test_settings_that_cannot_be(tiny_model: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        VllmBackend("http://localhost:1", tiny_model, **settings)


async def test_health(backend: VllmBackend, double: VllmDouble) -> None:
    found = await backend.health()
    assert (found.state, found.ready) == ("ready", True)
    double.healthy = False
    assert (await backend.health()).state == "unhealthy"
    double.fail("/health", 404, b"")
    assert (await backend.health()).state == "unhealthy"
    double.healthy = True
    double.gate.clear()
    assert (await backend._server.health(seconds=0.2)).state == "hung"


async def test_the_address_may_end_in_v1(double: VllmDouble, tiny_model: Path) -> None:
    for ending in ("", "/", "/v1", "/v1/"):
        backend = VllmBackend(double.url + ending, tiny_model, max_retries=0)
        assert (await backend.generate([ask("who")]))[0].text
        assert (await backend.health()).ready
        await backend.close()


async def test_two_users_at_once_do_not_disturb_each_other(backend: VllmBackend, double: VllmDouble) -> None:
    expected = {str(n): (await backend.generate([ask(str(n))]))[0].tokens for n in range(20)}
    double.fail(COMPLETIONS, 400, error("odd", 400), times=5)
    outcomes: list[Any] = []

    async def user(question: str) -> None:
        try:
            [answer] = await backend.generate([ask(question)])
            outcomes.append(answer.tokens == expected[question])
        except BackendError:
            outcomes.append("refused")

    async with anyio.create_task_group() as group:
        for question in expected:
            group.start_soon(user, question)
    assert outcomes.count("refused") == 5
    assert outcomes.count(True) == 15
