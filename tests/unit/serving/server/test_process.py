"""The command as a process: what it says, when its port is open, and how it ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx
import pytest

from model_server import model_server, start, stop
from rag_tuned_memory.adapters import AdapterRegistry
from rag_tuned_memory.cli import main
from rag_tuned_memory.serving.base import Fingerprint, Message
from rag_tuned_memory.serving.fingerprint import make_fingerprint
from rag_tuned_memory.serving.local import LocalBackend

LONG = {"max_new_tokens": 600, "details": True, "grammar": {"type": "regex", "value": "[a-z]{900,}"}}


class Said(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def refused(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def looking(port: int) -> Iterator[list[str]]:
    """What a GET /health gets, again and again."""
    seen: list[str] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            try:
                seen.append(str(httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code))
            except httpx.ConnectError:
                seen.append("refused")
            except httpx.TransportError:
                seen.append("closed")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def test_sigterm_refuses_the_new_and_finishes_the_running(tiny_model: Path, adapter_a: Path, adapter_b: Path) -> None:
    """As recorded in sigterm_timeline: connections refused, idle ones closed, running requests answered, status 0."""
    adapters = {"ad1": adapter_a, "ad2": adapter_b}
    port = free_port()
    arguments = ["--max-total-tokens", "2000", "--port", str(port)]
    with (
        looking(port) as seen,
        model_server(tiny_model, adapters, arguments) as server,
        httpx.Client(base_url=server.url) as idle,
    ):
        assert len(idle.get("/v1/models").json()["data"]) == 3
        assert idle.get("/health").status_code == 200
        answers: dict[str, Any] = {}
        begun = threading.Barrier(3)

        def stream() -> None:
            body = {"inputs": "x", "parameters": {**LONG, "adapter_id": "ad1"}}
            with httpx.stream("POST", f"{server.url}/generate_stream", json=body, timeout=60) as answer:
                lines = answer.iter_lines()
                next(lines)
                begun.wait()
                answers["stream"] = [line for line in lines if line]

        def whole() -> None:
            body = {"inputs": "x", "parameters": {**LONG, "adapter_id": "ad2"}}
            begun.wait()
            answers["whole"] = httpx.post(f"{server.url}/generate", json=body, timeout=60)

        threads = [threading.Thread(target=stream), threading.Thread(target=whole)]
        for thread in threads:
            thread.start()
        begun.wait()
        end = time.monotonic() + 10
        while httpx.get(f"{server.url}/info").json()["local"]["requests"] < 2:
            assert time.monotonic() < end
        server.terminate()
        while not refused(server.port):
            assert time.monotonic() < end
        assert server.process.poll() is None, "it still answers the two"
        with pytest.raises(httpx.TransportError):
            idle.get("/health")
        for thread in threads:
            thread.join()
        assert '"finish_reason":"length"' in answers["stream"][-1]
        assert answers["whole"].json()["details"]["generated_tokens"] == 600
        assert server.process.wait(20) == 0
    assert "not for production" in " ".join(server.lines)
    first = seen.index("200")
    assert set(seen[:first]) == {"refused"}, "while it loads there is no 503 and no half a server"
    assert set(seen[first:]) <= {"200", "refused", "closed"}


def test_sigterm_right_after_the_start_is_heard(tiny_model: Path) -> None:
    server = start(tiny_model)
    server.terminate()
    assert stop(server) == 0


def test_what_runs_beyond_the_limit_is_cut(tiny_model: Path) -> None:
    arguments = ["--max-total-tokens", "2000", "--graceful-termination-timeout", "1"]
    with model_server(tiny_model, arguments=arguments) as server:
        body = {"inputs": "x", "parameters": {**LONG, "max_new_tokens": 1900}}
        with httpx.stream("POST", f"{server.url}/generate_stream", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.terminate()
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert server.process.wait(20) == 0


@pytest.fixture
def rtm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Said]:
    """Runs the command in this process, up to where it would serve; without adapters of the environment."""
    monkeypatch.setenv("RTM_HOME", str(tmp_path))
    for name in ("LORA_ADAPTERS", "API_KEY", "RTM_MODEL"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Said:
        status = main(["serve-model", *arguments])
        return Said(status, *capsys.readouterr())

    return run


def test_a_bad_start_is_one_line_and_status_1(tiny_model: Path, tmp_path: Path, rtm: Callable[..., Said]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = [
            (rtm("--model", str(tiny_model), "--port", port), "cannot listen"),
            (rtm("--model", str(tmp_path)), "config.json is missing"),
            (rtm("--model", str(tiny_model), "--lora-adapters", f"x={tmp_path}"), "no adapter_config.json"),
            (rtm("--model", str(tiny_model), "--lora-adapters", "x"), "it must be name=/path"),
            (rtm("--max-input-tokens", "10", "--max-total-tokens", "10"), "must be less than --max-total-tokens"),
            (rtm("--model", str(tiny_model), "--unknown-adapter", "perhaps"), "must be refuse or base"),
            (rtm("--model", str(tiny_model), "--adapter", "nobody-v1"), "nobody-v1"),
            (rtm("--model", str(tiny_model), "--max-total-tokens", "4096"), "context of 2048"),
        ]
    for said, text in cases:
        assert said.status == 1, said
        assert said.err.startswith("error: ")
        assert text in said.err
        assert said.err.count("\n") == 1


def test_help_says_what_it_is_for(rtm: Callable[..., Said]) -> None:
    assert "NOT for production" in " ".join(rtm("--help").out.split())


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        (["--host", "0.0.0.0"], True),
        (["--host", "::"], True),
        (["--host", "localhost"], False),
        (["--host", "127.0.0.2"], False),
        (["--host", "0.0.0.0", "--api-key", "s3cret"], False),
    ],
)
def test_open_to_the_network_without_a_key_is_warned_of(
    tiny_model: Path, rtm: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, arguments: list[str], warned: bool
) -> None:
    monkeypatch.setattr("rag_tuned_memory.serving.server.run.serve", lambda *given: None)
    said = rtm("--model", str(tiny_model), *arguments)
    assert said.status == 0
    assert ("WARNING: whoever reaches" in said.out) == warned
    assert "not for production" in said.out


def test_an_adapter_of_the_registry_is_verified_and_proven(
    tiny_model: Path,
    adapter_a: Path,
    adapter_b: Path,
    tmp_path: Path,
    rtm: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fingerprint = anyio.run(fingerprint_of, tiny_model, adapter_a)
    registry = AdapterRegistry(tmp_path / "adapters")
    right = register(registry, "alice", adapter_a, tmp_path / "run-a", fingerprint)
    wrong = register(registry, "bob", adapter_b, tmp_path / "run-b", fingerprint)
    options = ("--model", str(tiny_model), "--dtype", "float32", "--port", "0")
    loaded: list[dict[str, str]] = []

    async def serve(self: Any, sockets: Any) -> None:
        loaded.append(self._service.adapters.paths)

    monkeypatch.setattr("rag_tuned_memory.serving.server.run._Server.serve", serve)
    assert rtm(*options, "--adapter", right).status == 0
    assert loaded == [{right: str(registry.files_of(right))}]
    said = rtm(*options, "--adapter", wrong)
    assert said.status == 1
    assert "nats a token away from its fingerprint" in said.err or "as the base model does" in said.err
    weights = registry.files_of(right) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    said = rtm(*options, "--adapter", right)
    assert said.status == 1
    assert "adapter_model.safetensors" in said.err
    assert len(loaded) == 1


async def fingerprint_of(model: Path, adapter: Path) -> Fingerprint:
    backend = LocalBackend(model, device="cpu", dtype="float32")
    await backend.load_adapter("a", adapter)
    canaries = [([Message("user", "hello")], "the disk was full"), ([Message("user", "who")], "Ana")]
    made = await make_fingerprint(backend, "a", canaries)
    await backend.close()
    return made


def register(registry: AdapterRegistry, namespace: str, files: Path, run: Path, fingerprint: Fingerprint) -> str:
    """Register an adapter's files with a fingerprint; the name that it got."""
    import shutil

    from rag_tuned_memory.adapters import Draft, Learned, TrainStats, Watermark
    from rag_tuned_memory.distil.recipe import Recipe
    from served_adapter import METRICS

    shutil.copytree(files, run)
    (run / "learned.json").write_text("[]")
    draft = Draft(
        base_model="tiny",
        base_revision="1",
        recipe=Recipe(),
        dataset_sha256="ab" * 32,
        learned=(Learned(trajectory_id="t", content_hash="h"),),
        watermark=Watermark(sequence=1),
        metrics=METRICS,
        fingerprint=fingerprint,
        train=TrainStats(seconds=1.0, tokens=500, tokens_per_second=500.0),
    )
    manifest = registry.register(namespace, run, draft)
    registry.conclude(manifest.name)
    return manifest.name
