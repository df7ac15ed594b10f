"""A double of a TGI server: real HTTP on loopback, whose answers are given byte by byte.

It computes nothing. Recorded answers go out as they were recorded; others are made by the tests.
"""

from __future__ import annotations

import json
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio.to_thread
from recordings import Reply, json_reply, reply

Answer = Reply | Callable[[dict[str, Any]], Reply | None]
"""A fixed answer, or one made from the request's body; None never answers."""


class ReplayServer:
    """Answers ``POST /`` with ``answer``; other paths by ``routes``, ``(method, path)`` to answer.

    ``requests`` keeps what was asked, ``gone`` is set when a client closes the connection of an unfinished answer.
    """

    def __init__(self, answer: Answer, *, tokenize: Callable[[str], list[int]], port: int = 0) -> None:
        self.answer = answer
        self.routes: dict[tuple[str, str], Answer] = {
            ("GET", "/info"): reply("info"),
            ("GET", "/health"): reply("health"),
            ("POST", "/tokenize"): lambda body: json_reply(
                [{"id": one, "text": "", "start": 0, "stop": 0} for one in tokenize(body["inputs"])]
            ),
        }
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.connections = 0
        self.gone = threading.Event()
        self._stopping = threading.Event()
        self._open: set[socket.socket] = set()
        outer = self

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False
            request_queue_size = 256

        class Handler(socketserver.StreamRequestHandler):
            disable_nagle_algorithm = True

            def handle(self) -> None:
                outer._serve(self)

            def finish(self) -> None:
                outer._open.discard(self.connection)

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True)
        self._thread.start()

    @property
    def generated(self) -> list[Any]:
        """The bodies of the requests for text."""
        return [body for method, path, _, body in self.requests if (method, path) == ("POST", "/")]

    async def client_left(self) -> bool:
        """Wait until a client closed the connection of an unfinished answer."""
        return await anyio.to_thread.run_sync(self.gone.wait, 2)

    def stop(self) -> None:
        """End as a killed process does: the port is closed and all connections are cut."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def _serve(self, handler: socketserver.StreamRequestHandler) -> None:
        self._open.add(handler.connection)
        self.connections += 1
        try:
            while not self._stopping.is_set() and self._one(handler):
                pass
        except OSError:
            self.gone.set()

    def _one(self, handler: socketserver.StreamRequestHandler) -> bool:
        line = handler.rfile.readline().decode()
        if not line.strip():
            return False
        method, path, _ = line.split(" ")
        headers = {}
        while (header := handler.rfile.readline().decode().strip()) != "":
            key, _, value = header.partition(":")
            headers[key.lower()] = value.strip()
        data = handler.rfile.read(int(headers.get("content-length", 0)))
        content = json.loads(data) if data else None
        self.requests.append((method, path, headers, content))
        answer = self.answer if (method, path) == ("POST", "/") else self.routes.get((method, path))
        found = answer(content) if callable(answer) else answer
        if found is None:
            return self._silent(handler.connection, seconds=60)
        for index, piece in enumerate(found.pieces):
            if index and found.pause and not self._silent(handler.connection, found.pause):
                return False
            handler.connection.sendall(piece)
        return not found.closed

    def _silent(self, connection: socket.socket, seconds: float) -> bool:
        """Wait; False when the client went away meanwhile, or the server stops."""
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and time.monotonic() < until:
            if select.select([connection], [], [], 0.01)[0] and not connection.recv(1, socket.MSG_PEEK):
                self.gone.set()
                return False
        return not self._stopping.is_set()
