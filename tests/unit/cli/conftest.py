"""The command, run in this process, with a home of its own and no weights."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.adapters import AdapterRegistry
from rag_tuned_memory.cli import main
from rag_tuned_memory.memory import Memory
from rag_tuned_memory.serving.scripted import ScriptedBackend


@dataclass
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on stderr."""
        [line] = self.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")


Rtm = Callable[..., Ran]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {
        "RTM_HOME": str(tmp_path / "home"),
        "RTM_CACHE": str(tmp_path / "cache"),
        "RTM_EMBEDDER": "hashing",
        "COLUMNS": "120",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("RTM_NAMESPACE", "RTM_STORE", "RTM_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def rtm(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Rtm:
    def run(*arguments: str, stdin: str | bytes = "") -> Ran:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        capsys.readouterr()
        status = main(arguments)
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@pytest.fixture
def registry(home: Path) -> AdapterRegistry:
    return AdapterRegistry(home / "adapters")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    """A model for the commands that need one."""
    backend = ScriptedBackend(lambda request: "yes the disk was full" if request.adapter else "the disk")
    monkeypatch.setattr(
        "rag_tuned_memory.cli.answering.open_memory", lambda namespace: Memory(namespace, backend=backend)
    )
    return backend
