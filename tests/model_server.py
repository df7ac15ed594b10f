"""A real ``rtm serve-model`` process on a free port, for tests of servers and their clients.

    with model_server(model, adapters={"ad1": folder}) as server:
        httpx.get(server.url + "/health")

Start-up takes a few seconds with the model of ``tiny_model``. The process ends with the block, by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

STARTS = 90.0
"""Seconds; a busy machine imports slowly."""


@dataclass
class ModelServer:
    """A running server. ``lines`` is what it wrote so far."""

    url: str
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def terminate(self) -> None:
        """Ask it to drain and end; ``process.wait`` tells when it has."""
        self.process.send_signal(signal.SIGTERM)


def start(
    model: Path, adapters: Mapping[str, Path] | None = None, arguments: Sequence[str] = (), *, dtype: str = "float32"
) -> ModelServer:
    """Start a server and wait until it answers. Raises RuntimeError with its output when it ends before that."""
    listed = ",".join(f"{name}={path}" for name, path in (adapters or {}).items())
    run = "import sys; from rag_tuned_memory.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", run, "serve-model", "--model", str(model), "--port", "0"]
    command += ["--dtype", dtype, "--device", "cpu", *arguments]
    environment = {**os.environ, "LORA_ADAPTERS": listed, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, encoding="utf-8"
    )
    server = ModelServer("", process)
    known = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            server.lines.append(line.rstrip())
            if " on http://" in line:
                server.url = line.rpartition(" on ")[2].strip()
                known.set()
        known.set()

    threading.Thread(target=read, daemon=True).start()
    if not known.wait(STARTS) or not server.url:
        process.kill()
        raise RuntimeError("the server did not start:\n" + "\n".join(server.lines))
    return server


def stop(server: ModelServer, *, within: float = 20.0) -> int:
    """End a server and give its exit status; it is killed when it takes too long."""
    if server.process.poll() is None:
        server.terminate()
    try:
        return server.process.wait(within)
    except subprocess.TimeoutExpired:
        server.process.kill()
        return server.process.wait()


@contextmanager
def model_server(
    model: Path, adapters: Mapping[str, Path] | None = None, arguments: Sequence[str] = (), *, dtype: str = "float32"
) -> Iterator[ModelServer]:
    """A server for the length of a block."""
    server = start(model, adapters, arguments, dtype=dtype)
    try:
        yield server
    finally:
        stop(server)
