"""A real Weaviate for tests: one that is named, or a binary on the PATH, started with a throw-away folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

HOW = "no Weaviate: set RTM_TEST_WEAVIATE=weaviate://host:8080?grpc=50051, or put the server `weaviate` on the PATH"
_START_SECONDS = 60


@dataclass
class Server:
    """A running server. ``port`` answers REST, ``grpc`` gRPC."""

    host: str
    port: int
    grpc: int
    process: subprocess.Popen[bytes] | None = None

    def url(self, **settings: object) -> str:
        """The store's URL with further settings."""
        more = "".join(f"&{name}={value}" for name, value in settings.items())
        return f"weaviate://{self.host}:{self.port}?grpc={self.grpc}{more}"

    def rest(self, path: str) -> str:
        return f"http://{self.host}:{self.port}/v1/{path}"

    def drop(self, prefix: str) -> None:
        """Delete all collections whose names begin so."""
        classes = httpx.get(self.rest("schema"), timeout=30).json()["classes"]
        for one in classes:
            if one["class"].startswith(prefix):
                httpx.delete(self.rest(f"schema/{one['class']}"), timeout=60)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on, each followed by another free one."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                if not {port - 1, port, port + 1} & set(found):
                    found.append(port)
    return found


def environment(folder: Path, grpc: int, gossip: int, raft: int, *, name: str = "node0") -> dict[str, str]:
    """What a node is told; one of a cluster is told more."""
    return {
        **os.environ,
        "PERSISTENCE_DATA_PATH": str(folder / "data"),
        "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "true",
        "CLUSTER_HOSTNAME": name,
        "CLUSTER_IN_LOCALHOST": "true",
        "CLUSTER_BIND_ADDR": "127.0.0.1",
        "CLUSTER_ADVERTISE_ADDR": "127.0.0.1",
        "CLUSTER_GOSSIP_BIND_PORT": str(gossip),
        "CLUSTER_DATA_BIND_PORT": str(gossip + 1),
        "RAFT_PORT": str(raft),
        "RAFT_INTERNAL_RPC_PORT": str(raft + 1),
        "RAFT_JOIN": f"{name}:{raft}",
        "RAFT_BOOTSTRAP_EXPECT": "1",
        "GRPC_PORT": str(grpc),
        "DISABLE_TELEMETRY": "true",
        "GO_PROFILING_DISABLE": "true",
        "AUTOSCHEMA_ENABLED": "false",
        "DISK_USE_READONLY_PERCENTAGE": "0",
        "GOMAXPROCS": "2",
        "GOMEMLIMIT": "2GiB",
        "LOG_LEVEL": "error",
    }


def start(binary: str, folder: Path, port: int, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a node; its output goes to ``server.log`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    timeouts = ["--read-timeout=600s", "--write-timeout=600s"]
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(
            [binary, "--host", "127.0.0.1", "--port", str(port), "--scheme", "http", *timeouts],
            env=env,
            stdout=log,
            stderr=log,
        )


def wait_until_ready(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Raises RuntimeError with the end of the log where the node does not become ready."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/v1/.well-known/ready", timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    log = (folder / "server.log").read_text(encoding="utf-8", errors="replace")
    raise RuntimeError(f"Weaviate did not start:\n{log[-2000:]}")


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 3) -> Iterator[list[Server]]:
    """A cluster of the binary on the PATH, on loopback."""
    binary = shutil.which("weaviate")
    assert binary is not None
    ports = [free_ports(4) for _ in range(nodes)]
    names = [f"node{i}" for i in range(nodes)]
    joined = ",".join(f"{name}:{raft}" for name, (_, _, _, raft) in zip(names, ports, strict=True))
    servers: list[Server] = []
    try:
        for number, (name, (port, grpc, gossip, raft)) in enumerate(zip(names, ports, strict=True)):
            env = environment(folder / name, grpc, gossip, raft, name=name)
            env |= {"RAFT_JOIN": joined, "RAFT_BOOTSTRAP_EXPECT": str(nodes), "GOMEMLIMIT": "1GiB"}
            if number:
                env["CLUSTER_JOIN"] = f"localhost:{ports[0][2]}"
            servers.append(Server("127.0.0.1", port, grpc, start(binary, folder / name, port, env)))
        for one, name in zip(servers, names, strict=True):
            assert one.process is not None
            wait_until_ready(one.port, one.process, folder / name)
        yield servers
    finally:
        for one in servers:
            stop(one)


def stop(one: Server) -> None:
    """End a node that was started here."""
    assert one.process is not None
    one.process.terminate()
    try:
        one.process.wait(30)
    except subprocess.TimeoutExpired:
        one.process.kill()


def server(folder: Path) -> Iterator[Server | None]:
    """The server that is named, or one that is started and stopped again; None where there is neither."""
    if named := os.environ.get("RTM_TEST_WEAVIATE"):
        url = httpx.URL(named.replace("weaviate://", "http://"))
        yield Server(url.host, url.port or 8080, int(url.params.get("grpc", 50051)))
        return
    binary = shutil.which("weaviate")
    if binary is None:
        yield None
        return
    with started(binary, folder) as one:
        yield one


@contextlib.contextmanager
def started(binary: str, folder: Path, **settings: str) -> Iterator[Server]:
    """A server that is started and stopped again; ``settings`` are further ones of its environment."""
    port, grpc, gossip, raft = free_ports(4)
    env = environment(folder, grpc, gossip, raft) | settings
    one = Server("127.0.0.1", port, grpc, start(binary, folder, port, env))
    try:
        assert one.process is not None
        wait_until_ready(port, one.process, folder)
        yield one
    finally:
        stop(one)
