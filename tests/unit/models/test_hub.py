"""The real hub client against a small hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from carried_model import FILES, sha256

COMMIT = "a" * 40
SCRIPT = """
import sys
from rag_tuned_memory.errors import RagTunedMemoryError
from rag_tuned_memory.models import pull, read_info
stages = []
try:
    folder = pull("nobody/tiny", cache=sys.argv[1], on_progress=lambda *r: stages.append(r))
    print(read_info(folder).model_dump_json())
    print([s for s in stages if s[0] == "downloading"][-1][1])
except RagTunedMemoryError as error:
    print(type(error).__name__, error)
"""


class Hub(BaseHTTPRequestHandler):
    files = FILES | {"pytorch_model.bin": b"pickled", "onnx/config.json": b"{}"}

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/nobody/tiny/tree/"):
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": sha256(data)[:40]}
                for name, data in self.files.items()
            ]
            return self.answer(json.dumps(rows).encode())
        if self.path.startswith("/api/models/nobody/tiny"):
            info = {"id": "nobody/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            return self.answer(json.dumps(info).encode())
        name = self.path.partition(f"/nobody/tiny/resolve/{COMMIT}/")[2]
        if name in self.files:
            return self.answer(self.files[name])
        self.send_error(404)
        return None

    do_HEAD = do_GET

    def answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{sha256(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(cache: Path, endpoint: str) -> tuple[list[str], str]:
    # The hub's client reads its settings when it is imported: hence a process of its own.
    keep = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    environment = {**keep, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(cache)], env=environment, capture_output=True, text=True, timeout=60
    )
    return done.stdout.splitlines(), done.stderr


def test_a_model_comes_from_the_hub(tmp_path: Path, endpoint: str) -> None:
    (info, downloaded), errors = run(tmp_path, endpoint)
    folder = tmp_path / "models" / "nobody--tiny"
    assert json.loads(info)["source"] == "hub:nobody/tiny@main"
    assert json.loads(info)["revision"] == sha256(FILES["model.safetensors"])
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {*FILES, "rtm-model.json"}
    assert int(downloaded) == sum(map(len, FILES.values()))
    assert errors == ""


def test_a_repository_without_safetensors_is_refused(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "files", {name: data for name, data in Hub.files.items() if "safetensors" not in name})
    (line,), _ = run(tmp_path, endpoint)
    assert line == "ModelError hub:nobody/tiny@main holds no config.json with *.safetensors beside it"
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".nobody--tiny.lock"]


def test_a_hub_that_refuses_the_connection_is_told_fast(tmp_path: Path) -> None:
    (line,), _ = run(tmp_path, "http://127.0.0.1:9")
    assert line.startswith("ModelError the model nobody/tiny cannot be pulled: the hub cannot give nobody/tiny (")
