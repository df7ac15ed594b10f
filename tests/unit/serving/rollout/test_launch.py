from __future__ import annotations

import sys
import time
from pathlib import Path

import anyio
import httpx
import pytest

from rag_tuned_memory.errors import BackendError, InvalidInput
from rag_tuned_memory.serving.rollout.launch import CommandLauncher, ProcessLauncher, Server, lora_adapters

pytestmark = pytest.mark.anyio

SERVER = """
import http.server, os, signal, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ["LORA_ADAPTERS"].encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
print("listening", flush=True)
if sys.argv[2:] == ["stubborn"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""A double: a real process that shows how it was started."""


def launcher(folder: Path, *more: str, stop_seconds: float = 5.0) -> ProcessLauncher:
    return ProcessLauncher([sys.executable, "-c", SERVER, "{port}", *more], folder / "logs", stop_seconds=stop_seconds)


async def answer(server: Server) -> str:
    for _ in range(100):
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(server.url)).text
        except httpx.TransportError:
            await anyio.sleep(0.05)
    raise AssertionError("it never listened")


async def test_a_process_is_started_with_the_adapters_and_stopped(tmp_path: Path) -> None:
    one = launcher(tmp_path)
    server = await one.start({"a-v1": Path("/a"), "b-v2": Path("/b")})
    try:
        assert await answer(server) == "a-v1=/a,b-v2=/b"
        assert await one.alive(server)
        assert not await one.alive(server.model_copy(update={"created": 1.0})), "another process with its number"
        assert await one.strays([server]) == []
        (stray,) = await launcher(tmp_path).strays([])
        assert stray.pid == server.pid
        assert await launcher(tmp_path / "other").strays([]) == []
    finally:
        await one.stop(server)
    assert not await one.alive(server)
    assert "listening" in await one.why(server)
    await one.stop(server)


async def test_one_that_does_not_end_is_killed(tmp_path: Path) -> None:
    one = launcher(tmp_path, "stubborn", stop_seconds=0.3)
    server = await one.start({})
    await answer(server)
    began = time.monotonic()
    await one.stop(server)
    assert not await one.alive(server)
    assert time.monotonic() - began < 5


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot be started"):
        await ProcessLauncher(["/no/such/program", "{port}"], tmp_path).start({})
    with pytest.raises(InvalidInput, match=r"\{port\}"):
        ProcessLauncher(["serve"], tmp_path)


@pytest.mark.parametrize(("name", "path"), [("a b", "/x"), ("a", "/x,y"), ("a=b", "/x"), ("a", "/x@y")])
def test_what_tgi_cannot_be_told_is_refused(name: str, path: str) -> None:
    with pytest.raises(InvalidInput, match="TGI cannot be given"):
        lora_adapters({name: Path(path)})


async def test_a_command_starts_and_stops(tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text(
        '#!/bin/sh\necho "$@ $LORA_ADAPTERS" >> ' + f"{tmp_path}/said\n" + "echo starting\necho http://new:80\n"
    )
    hook.chmod(0o755)
    one = CommandLauncher([str(hook)])
    server = await one.start({"a": Path("/a")})
    assert server == Server(url="http://new:80")
    await one.stop(server)
    assert (tmp_path / "said").read_text().split("\n")[:2] == ["up a=/a", "down http://new:80 "]


@pytest.mark.parametrize(
    ("script", "message"), [("exit 3", "failed with 3"), ("echo done", "no URL"), ("sleep 9", "not done within")]
)
async def test_a_command_that_fails(tmp_path: Path, script: str, message: str) -> None:
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\n{script}\n")
    hook.chmod(0o755)
    with pytest.raises(BackendError, match=message):
        await CommandLauncher([str(hook)], seconds=1).start({})
