"""The package as it is installed: names, what importing it needs, what a wheel holds."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import llama_index.memory.rag_tuned as package

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "weaviate", "peft", "openai", "sentence_transformers")


def test_public_names() -> None:
    assert package.__all__ == sorted(package.__all__) == sorted(package._HOMES)
    assert package.__all__ == [
        "RagTunedLLM",
        "RagTunedMemory",
        "RagTunedMemoryBlock",
        "RagTunedQueryEngine",
        "RagTunedRetriever",
        "RagTunedSelector",
        "RecordedRun",
        "TrajectoryRecorder",
    ]
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
        assert name in dir(package)
    with pytest.raises(AttributeError, match="no attribute 'Psychic'"):
        package.Psychic  # noqa: B018


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("RagTunedLLM", "FunctionCallingLLM"),
        ("RagTunedMemory", "BaseMemory"),
        ("RagTunedMemoryBlock", "BaseMemoryBlock"),
        ("RagTunedQueryEngine", "BaseQueryEngine"),
        ("RagTunedRetriever", "BaseRetriever"),
        ("RagTunedSelector", "BaseSelector"),
    ],
)
def test_class(name: str, base: str) -> None:
    assert base in [one.__name__ for one in getattr(package, name).__mro__]


def test_no_file_stands_in_the_namespace_packages() -> None:
    for folder in ("llama_index", "llama_index/memory"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_importing_needs_nothing_heavy_and_no_key() -> None:
    code = (
        "import sys, llama_index.memory.rag_tuned as p\n"
        "assert not [m for m in sys.modules if m.startswith('llama_index.core')], 'not lazy'\n"
        "[getattr(p, name) for name in p.__all__]\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    bare = {key: value for key, value in os.environ.items() if not key.endswith("_KEY")}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=bare)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr


def test_what_a_wheel_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        told = [name for name in wheel.namelist() if ".dist-info/" in name]
    folder = ROOT / "llama_index/memory/rag_tuned"
    expected = {f"llama_index/memory/rag_tuned/{path.name}" for path in folder.iterdir() if path.is_file()}
    assert set(names) == expected
    assert "llama_index/memory/rag_tuned/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in told)
