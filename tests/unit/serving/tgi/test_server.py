"""What the server says of itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from recordings import Reply, body, json_reply, load, reply
from replay_server import Answer, ReplayServer

from rag_tuned_memory.errors import BackendError, BackendUnavailable
from rag_tuned_memory.serving.health import Health
from rag_tuned_memory.serving.tgi import TgiBackend, TimeLimits

pytestmark = pytest.mark.anyio
Serve = Callable[..., ReplayServer]
Connect = Callable[..., TgiBackend]


async def test_info(serve: Serve, connect: Connect) -> None:
    backend = connect(serve())
    found = await backend.check()
    assert (found.model_id, found.model_sha, found.version) == ("/models/smol-tgi", None, "3.3.6-dev0")
    assert (found.max_input_tokens, found.max_total_tokens, found.max_concurrent_requests) == (400, 512, 128)
    assert backend.base_model.startswith("tiny@")


async def test_asked_once(serve: Serve, connect: Connect) -> None:
    server = serve()
    backend = connect(server)
    await backend.generate([ask("q")] * 5)
    await backend.check()
    paths = [path for _, path, _, _ in server.requests]
    assert paths.count("/info") == paths.count("/tokenize") == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (json_reply({"model_id": "x"}), "/info lacks .'max_input_tokens'"),
        (json_reply({**body("info"), "max_total_tokens": 0}), "/info lacks"),
        (json_reply(b"<html>", kind="text/html"), "protocol"),
        (json_reply(b""), "protocol"),
        (reply("unknown_path"), "no text-generation-inference server"),
        (json_reply(b"nginx", 502, reason="Bad Gateway"), "not ready .502: nginx"),
        (json_reply(b"", 503, reason="Service Unavailable"), "not ready"),
        (json_reply(b"", 500, reason="Oops"), "the server failed: status 500"),
        (Reply((), closed=True), "was cut"),
    ],
)
async def test_no_tgi(answer: Answer, message: str, serve: Serve, connect: Connect) -> None:
    server = serve()
    server.routes["GET", "/info"] = answer
    with pytest.raises(BackendError, match=message):
        await connect(server).generate([ask("q")])
    assert not server.generated


async def test_another_tokenizer(serve: Serve, connect: Connect) -> None:
    server = serve()
    server.routes["POST", "/tokenize"] = reply("tokenize")
    with pytest.raises(BackendError, match=r"serves '/models/smol-tgi', which is not the model in .*other tokens"):
        await connect(server).generate([ask("q")])
    assert not server.generated


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (json_reply([5]), "/tokenize"),
        (json_reply({"a": 1}), "/tokenize"),
        (reply("auth_missing_tokenize"), "the API key is missing or wrong"),
        (reply("unknown_path"), "no text-generation-inference server"),
    ],
)
async def test_tokenize_that_fails(answer: Answer, message: str, serve: Serve, connect: Connect) -> None:
    server = serve()
    server.routes["POST", "/tokenize"] = answer
    with pytest.raises(BackendError, match=message):
        await connect(server).check()


@pytest.mark.parametrize(("revision", "fits"), [("abc", True), ("abd", False), (None, True)])
async def test_revisions(revision: str | None, fits: bool, tiny_model: Path, tmp_path: Path, serve: Serve) -> None:
    """Where the hub's revision is known on both sides, it is compared."""
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    info = {"name": "x", "revision": "0" * 64, "source": "hub:owner/name@abc", "files": {}}
    (tmp_path / "rtm-model.json").write_text(json.dumps(info))
    server = serve()
    server.routes["GET", "/info"] = json_reply({**body("info"), "model_sha": revision})
    backend = TgiBackend(server.url, tmp_path)
    try:
        if fits:
            await backend.check()
        else:
            with pytest.raises(BackendError, match="revision abd there, abc here"):
                await backend.check()
    finally:
        await backend.close()


async def test_it_is_asked_again_after_a_failure(serve: Serve, connect: Connect) -> None:
    server = serve()
    good = server.routes["GET", "/info"]
    server.routes["GET", "/info"] = json_reply(b"", 503, reason="Service Unavailable")
    backend = connect(server)
    with pytest.raises(BackendUnavailable):
        await backend.check()
    server.routes["GET", "/info"] = good
    assert (await backend.check()).max_total_tokens == 512


async def test_a_restart_with_other_limits(serve: Serve, connect: Connect) -> None:
    first = serve()
    backend = connect(first)
    assert (await backend.check()).max_total_tokens == 512
    first.stop()
    second = serve(port=first.port)
    second.routes["GET", "/info"] = reply("auth_missing_info")
    assert (await backend.check()).max_total_tokens == 2048


UNHEALTHY = json_reply({"error": "unhealthy", "error_type": "healthcheck"}, 503, reason="Service Unavailable")


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (reply("health"), "ready"),
        (reply("overload_health"), "ready"),
        (UNHEALTHY, "unhealthy"),
        (reply("unknown_path"), "unhealthy"),
        (lambda body: None, "hung"),
        (Reply((), closed=True), "refused"),
    ],
)
async def test_health(answer: Answer, state: str, serve: Serve, connect: Connect) -> None:
    """A server whose model hangs answers /info, and /health never (``hung_shard_timeline``)."""
    timeline = load("hung_shard_timeline")["timeline"]
    assert [one.get("outcome", one.get("status")) for one in timeline[1:4]] == ["TimeoutError", "TimeoutError", 200]
    server = serve()
    server.routes["GET", "/health"] = answer
    found = await connect(server, timeout=TimeLimits(probe=0.3)).health()
    assert (found.state, found.ready) == (state, state == "ready")
    assert found == Health("ready") or found.detail


async def test_health_of_nobody(connect: Connect) -> None:
    assert (await connect("http://127.0.0.1:9").health()).state == "refused"


async def test_metrics(serve: Serve, connect: Connect) -> None:
    samples = "\n".join(load("metrics")["response"]["samples"])
    server = serve()
    server.routes["GET", "/metrics"] = json_reply(samples.encode(), kind="text/plain; charset=utf-8")
    assert "tgi_queue_size 0" in await connect(server).metrics()


async def test_counting(serve: Serve, connect: Connect, tokenize: Callable[[str], Any]) -> None:
    server = serve()
    assert await connect(server).count_tokens(["hello there", ""]) == [len(tokenize("hello there")), 0]
    assert not server.requests


async def test_scoring(serve: Serve, connect: Connect, tokenize: Callable[[str], list[int]]) -> None:
    """The completion's part of the prompt's log-probabilities; the ids show that it is that part."""

    def answer(body: dict[str, Any]) -> Reply:
        ids = tokenize(body["inputs"])
        prefill = [{"id": one, "text": "", "logprob": -index / 8 if index else None} for index, one in enumerate(ids)]
        details = {"finish_reason": "length", "generated_tokens": 1, "seed": None, "prefill": prefill, "tokens": []}
        return json_reply([{"generated_text": "x", "details": details}])

    server = serve(answer)
    backend = connect(server)
    request = ask("What?")
    start = len(await backend._folder.ids(request.messages))
    scores = await backend.score(request, ["The disk was full.", "", "no"])
    counts = await backend.count_tokens(["The disk was full.", "no"])
    assert scores == [
        tuple(-index / 8 for index in range(start, start + counts[0])),
        (),
        tuple(-index / 8 for index in range(start, start + counts[1])),
    ]
    sent = server.generated[0]
    assert sent["parameters"]["decoder_input_details"] is True
    assert "stream" not in sent
    with pytest.raises(ValueError, match="other tokens"):
        await backend.score(request, ["<|im_end|>"])
