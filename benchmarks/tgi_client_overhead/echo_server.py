"""A server that streams made-up tokens in TGI's framing, at a given pace: it measures clients, not models.

Run as a process of its own: ``python echo_server.py TOKENIZER_FOLDER``; it prints its port. ``parameters.seed`` is the
pause between tokens in microseconds.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tokenizers import Tokenizer

INFO = {
    "model_id": "echo",
    "max_input_tokens": 4096,
    "max_total_tokens": 8192,
    "max_concurrent_requests": 64,
    "max_stop_sequences": 4,
    "version": "0",
}


class Echo(BaseHTTPRequestHandler):
    """``/info``, ``/tokenize`` and ``POST /``."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 0
    tokenizer: Tokenizer
    last = 0.0

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """``/info``; and ``/last``, the milliseconds from the last request's arrival to its last token."""
        self._json(Echo.last if self.path == "/last" else INFO)

    def do_POST(self) -> None:
        """Tokens, or the token ids of a text."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            self._json([{"id": one} for one in self.tokenizer.encode(body["inputs"]).ids])
            return
        parameters = body["parameters"]
        count, pause = parameters["max_new_tokens"], parameters.get("seed", 0) / 1e6
        began = time.perf_counter()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for index in range(1, count + 1):
            if pause:
                time.sleep(pause)
            event = self._event(index, count)
            if index == count:
                Echo.last = (time.perf_counter() - began) * 1000
            self._chunk(event)
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, index: int, count: int) -> bytes:
        last = index == count
        details = {"finish_reason": "length", "generated_tokens": count, "seed": None, "input_length": 9}
        event = {
            "index": index,
            "token": {"id": 1000 + index, "text": f" {index}", "logprob": -0.25976562, "special": False},
            "generated_text": "".join(f" {one}" for one in range(1, count + 1)) if last else None,
            "details": details if last else None,
        }
        return b"data: " + json.dumps(event).encode() + b"\n\n"

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _json(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    """Serve until the process is ended."""
    Echo.tokenizer = Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
