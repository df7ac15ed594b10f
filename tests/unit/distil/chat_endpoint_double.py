"""A double of an OpenAI-compatible endpoint: a local HTTP server with answers from a list; keeps what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatEndpointDouble:
    """``answers`` are (status, body) pairs, given in order, the last one again and again."""

    def __init__(self, answers: list[tuple[int, Any]]) -> None:
        self.answers = answers
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                double.paths.append(self.path)
                double.headers.append({key.lower(): value for key, value in self.headers.items()})
                double.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                status, body = double.answers[min(len(double.bodies), len(double.answers)) - 1]
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"


@contextmanager
def chat_endpoint_double(*answers: tuple[int, Any]) -> Iterator[ChatEndpointDouble]:
    double = ChatEndpointDouble(list(answers))
    thread = threading.Thread(target=double.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield double
    finally:
        double.server.shutdown()
        thread.join()
        double.server.server_close()


def completion(text: str | None) -> dict[str, Any]:
    """The body of a chat completion that says ``text``."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "double",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
    }
