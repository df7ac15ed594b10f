"""The server's application on a real port, in a thread of this process: no time is lost with imports."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import uvicorn

from rag_tuned_memory.serving.local import LocalBackend
from rag_tuned_memory.serving.server.adapters import Given
from rag_tuned_memory.serving.server.app import build_app
from rag_tuned_memory.serving.server.service import Options, Service


@contextmanager
def listening(model: Path, options: Options, adapters: dict[str, Path] | None = None) -> Iterator[tuple[str, Service]]:
    """The address, and the service behind it."""
    backend = LocalBackend(model, device="cpu", dtype="float32")
    service = Service(backend, options)
    anyio.run(service.adapters.start, [Given(name, path) for name, path in (adapters or {}).items()])
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(build_app(service), log_level="warning", access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", service
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        anyio.run(backend.close)
