"""A double of a vLLM server: real HTTP on loopback, statuses and bodies as vLLM 0.32 gives them, and no model.

Its answers are numbers drawn from a hash of the adapter's weights and the prompt. What was once computed for a name,
path and salt is kept when the weights change, as vLLM's prefix cache does. It says nothing about a model.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio.to_thread

END = 2
"""The tiny model's end token."""


class VllmDouble:
    """``answer`` gives the token ids of an answer from the request's body; ``faults`` come first, see ``fail``."""

    def __init__(self) -> None:
        self.adapters: dict[str, tuple[str, bytes]] = {}
        self.updating = True
        self.max_rank = 16
        self.context = 2048
        self.key: str | None = None
        self.healthy = True
        self.answer: Callable[[dict[str, Any]], list[int]] = self.drawn
        self.gate = threading.Event()
        self.gate.set()
        self.cut_stream_at: int | None = None
        self.mixes_up = False
        """Answers the base's requests with an adapter that runs beside them, as vLLM's CPU kernels do."""
        self.stream_event: bytes | None = None
        """Sent after the first piece of a stream, instead of the rest."""
        self.change: Callable[[dict[str, Any]], Any] = lambda reply: reply
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.peak = self.running = self.disconnects = self.connections = 0
        self._faults: list[tuple[str, int, bytes, dict[str, str]]] = []
        self._cache: dict[tuple[str, str, str | None], bytes] = {}
        self._lock = threading.Lock()
        self._beside: list[str] = []
        double = self

        class Handler(_Handler):
            server_double = double

        self.server = _Server(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def sent(self, path: str) -> list[dict[str, Any]]:
        """Bodies of the requests to a path."""
        return [body for one, body in self.requests if one == path]

    def fail(self, path: str, status: int, body: Any, *, times: int = 1, headers: dict[str, str] | None = None) -> None:
        """The next ``times`` requests to ``path`` get this; status 0 closes the connection without an answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._faults += [(path, status, data, headers or {})] * times

    def fault(self, path: str) -> tuple[str, int, bytes, dict[str, str]] | None:
        with self._lock:
            found = next((one for one in self._faults if one[0] == path), None)
            if found:
                self._faults.remove(found)
            return found

    async def until(self, condition: Callable[[VllmDouble], Any], seconds: float = 5.0) -> None:
        """Wait until something is so; fails after ``seconds``."""

        def poll() -> bool:
            deadline = time.monotonic() + seconds
            while not condition(self) and time.monotonic() < deadline:
                time.sleep(0.01)
            return bool(condition(self))

        assert await anyio.to_thread.run_sync(poll)

    def restart(self) -> None:
        """Forget all adapters, as a server that was started again."""
        self.adapters.clear()
        self._cache.clear()

    def weights(self, body: dict[str, Any]) -> bytes:
        """What a request is computed with."""
        name = body["model"]
        if name == "base" and self.mixes_up and body.get("beside"):
            name = body["beside"]
        if name not in self.adapters:
            return b"base"
        path, data = self.adapters[name]
        return self._cache.setdefault((name, path, body.get("cache_salt")), data)

    def drawn(self, body: dict[str, Any]) -> list[int]:
        """Six tokens and the end."""
        random_ = random.Random(_digest(self.weights(body), body["prompt"], body.get("seed") or 0))
        return [*(random_.randrange(300, 500) for _ in range(6)), END]

    def logprob(self, body: dict[str, Any], before: list[int], token: int) -> float:
        return -1 - 5 * random.Random(_digest(self.weights(body), before, token)).random()

    def logprobs(self, body: dict[str, Any], start: list[int], ids: list[int], *, first_is_none: bool) -> Any:
        values: list[float | None] = [
            self.logprob(body, [*start, *ids[:index]], token) for index, token in enumerate(ids)
        ]
        if first_is_none:
            values[0] = None
        names = [f"token_id:{one}" for one in ids]
        tops = [None if value is None else {name: value} for name, value in zip(names, values, strict=True)]
        return {"tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": [0] * len(ids)}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_double: VllmDouble

    def setup(self) -> None:
        super().setup()
        with self.server_double._lock:
            self.server_double.connections += 1

    def do_GET(self) -> None:
        self._serve({})

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self, body: dict[str, Any]) -> None:
        double = self.server_double
        double.requests.append((self.path, body))
        double.headers.append({key.lower(): value for key, value in self.headers.items()})
        if fault := double.fault(self.path):
            _, status, data, headers = fault
            if status == 0:
                self.close_connection = True
                return
            self._send(status, data, headers)
            return
        if double.key and self.headers["authorization"] != f"Bearer {double.key}":
            self._send(401, b'{"error":"Unauthorized"}')
            return
        route = {
            "/health": self._health,
            "/v1/models": self._models,
            "/v1/load_lora_adapter": self._load,
            "/v1/unload_lora_adapter": self._unload,
            "/v1/completions": self._complete,
        }.get(self.path)
        if route is None or ("lora" in self.path and not double.updating):
            self._json(404, {"detail": "Not Found"})
            return
        route(body)

    def _health(self, _: dict[str, Any]) -> None:
        self.server_double.gate.wait(10)
        self._send(200 if self.server_double.healthy else 503, b"")

    def _models(self, _: dict[str, Any]) -> None:
        double = self.server_double
        base = {
            "id": "base",
            "object": "model",
            "root": "/models/base",
            "parent": None,
            "max_model_len": double.context,
        }
        cards = [base] + [
            {"id": name, "object": "model", "root": path, "parent": "base", "max_model_len": None}
            for name, (path, _) in double.adapters.items()
        ]
        self._json(200, {"object": "list", "data": cards})

    def _load(self, body: dict[str, Any]) -> None:
        double, name, path = self.server_double, body["lora_name"], body["lora_path"]
        if name == "base":
            self._error(400, f"The lora adapter '{name}' conflicts with a served base model.", "InvalidUserInput")
        elif name in double.adapters and not body.get("load_inplace"):
            self._error(
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
                "InvalidUserInput",
            )
        elif not (Path(path) / "adapter_config.json").is_file():
            self._error(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        elif (rank := _rank(Path(path))) > double.max_rank:
            self._error(
                500,
                f"Call to add_lora method failed: Worker failed with error 'LoRA rank {rank} is greater than "
                f"max_lora_rank {double.max_rank}.', please check the stack trace above for the root cause",
                "InternalServerError",
            )
        else:
            double.adapters[name] = (path, (Path(path) / "adapter_model.safetensors").read_bytes())
            self._send(200, f"Success: LoRA adapter '{name}' added successfully.".encode())

    def _unload(self, body: dict[str, Any]) -> None:
        name = body["lora_name"]
        if name not in self.server_double.adapters:
            self._error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
            return
        del self.server_double.adapters[name]
        self._send(200, f"Success: LoRA adapter '{name}' removed successfully.".encode())

    def _complete(self, body: dict[str, Any]) -> None:
        double = self.server_double
        if body["model"] != "base" and body["model"] not in double.adapters:
            aliases = "base"
            message = f"The model `{body['model']}` does not exist. Valid aliases: {aliases}."
            self._error(404, message, "NotFoundError")
            return
        with double._lock:
            double.running += 1
            double.peak = max(double.peak, double.running)
            double._beside.append(body["model"])
        if double.mixes_up:
            time.sleep(0.1)
            body["beside"] = next((one for one in double._beside if one != "base"), None)
            time.sleep(0.1)
        try:
            if not body.get("stream"):  # a stream waits after its first piece
                double.gate.wait(10)
            self._answered(body)
        finally:
            with double._lock:
                double.running -= 1
                double._beside.remove(body["model"])

    def _answered(self, body: dict[str, Any]) -> None:
        double, prompt = self.server_double, body["prompt"]
        if body.get("echo"):
            logprobs = double.logprobs(body, [], prompt, first_is_none=True)
            choice = {"index": 0, "text": "", "logprobs": logprobs, "finish_reason": "length", "stop_reason": None}
            self._json(200, double.change({"id": "c", "object": "text_completion", "created": 1, "choices": [choice]}))
            return
        ids = double.answer(body)
        finish, stop = ("length", None) if len(ids) > body["max_tokens"] else ("stop", None)
        ids = ids[: body["max_tokens"]]
        if finish == "stop" and ids[-1] != END:
            stop = (body.get("stop") or [None])[0]
        logprobs = double.logprobs(body, prompt, ids, first_is_none=False)
        if not body.get("stream"):
            choice = {"index": 0, "text": "?", "logprobs": logprobs, "finish_reason": finish, "stop_reason": stop}
            self._json(200, double.change({"id": "c", "object": "text_completion", "created": 1, "choices": [choice]}))
            return
        self._stream(ids, logprobs, finish, stop)

    def _stream(self, ids: list[int], logprobs: Any, finish: str, stop: str | None) -> None:
        double = self.server_double
        events = []
        for index in range(len(ids)):
            last = index == len(ids) - 1
            piece = {name: values[index : index + 1] for name, values in logprobs.items()}
            ending = {"finish_reason": finish if last else None, "stop_reason": stop if last else None}
            choice = {"index": 0, "text": "?", "logprobs": piece, **ending}
            chunk = {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
            events.append(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        if double.stream_event is not None:
            events = [events[0], double.stream_event]
        events.append(b"data: [DONE]\n\n")
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        left = math.inf if double.cut_stream_at is None else double.cut_stream_at
        try:
            for event in events:
                data = b"%x\r\n%s\r\n" % (len(event), event)
                self.wfile.write(data[: int(min(left, len(data)))])
                self.wfile.flush()
                left -= len(data)
                if left <= 0:
                    self.close_connection = True
                    return
                while not double.gate.wait(0.02):
                    self.wfile.write(b"3\r\n:\n\n\r\n")  # a comment: notices that nobody reads any more
                    self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            double.disconnects += 1
            self.close_connection = True

    def _error(self, status: int, message: str, kind: str) -> None:
        self._json(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})

    def _json(self, status: int, body: Any) -> None:
        self._send(status, body if isinstance(body, bytes) else json.dumps(body).encode())

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json" if data[:1] in (b"{", b"[") else "text/plain")
            self.send_header("content-length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.server_double.disconnects += 1
            self.close_connection = True


def _rank(path: Path) -> int:
    config = json.loads((path / "adapter_config.json").read_text())
    return max([config["r"], *config.get("rank_pattern", {}).values()])


def _digest(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


@contextmanager
def vllm_double() -> Iterator[VllmDouble]:
    double = VllmDouble()
    thread = threading.Thread(target=double.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield double
    finally:
        double.gate.set()
        double.server.shutdown()
        thread.join()
        double.server.server_close()


def write_adapter(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A LoRA of random weights for one layer of the tiny model."""
    import numpy as np
    from safetensors.numpy import save_file

    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "target_modules": ["up_proj"]} | config
    pattern = config.get("rank_pattern")
    ranks = [config["r"], *(pattern.values() if isinstance(pattern, dict) else [])]
    rank = max([one for one in ranks if isinstance(one, int) and one > 0] or [8])
    random_ = np.random.default_rng(seed)
    layer = "base_model.model.model.layers.0.mlp.up_proj"
    a, b = random_.standard_normal((rank, 64)), random_.standard_normal((128, rank))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {f"{layer}.lora_A.weight": a.astype("f4"), f"{layer}.lora_B.weight": b.astype("f4")}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
