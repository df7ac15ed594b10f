from __future__ import annotations

import json
import subprocess
import sys

import pytest

import rag_tuned_memory

PUBLIC = [
    "Answer",
    "AsyncMemory",
    "Decision",
    "DistilPolicy",
    "DistilReport",
    "EpisodeRecorder",
    "Filter",
    "ForgetReceipt",
    "Memories",
    "Memory",
    "MemoryStats",
    "Outcome",
    "RagTunedMemoryError",
    "Recipe",
    "Recollection",
    "RecordReceipt",
    "Route",
    "Routing",
    "Settings",
    "Step",
    "StepKind",
    "Trajectory",
    "__version__",
]


def test_the_public_names_are_these() -> None:
    assert rag_tuned_memory.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(rag_tuned_memory))


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_is_there_under_its_name(name: str) -> None:
    found = getattr(rag_tuned_memory, name)
    assert isinstance(found, str) if name == "__version__" else found.__name__ == name


def test_another_name_is_not_there() -> None:
    with pytest.raises(AttributeError, match="Memroy"):
        _ = rag_tuned_memory.Memroy  # type: ignore[attr-defined]


def loaded_by(code: str) -> set[str]:
    program = f"{code}\nimport json, sys; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    return set(json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout))


def test_importing_the_package_loads_none_of_its_dependencies() -> None:
    loaded = loaded_by("import rag_tuned_memory")
    assert "rag_tuned_memory" in loaded
    assert not loaded & {"torch", "transformers", "peft", "weaviate", "numpy", "pydantic", "anyio", "typer", "httpx"}


def test_recording_and_recalling_load_neither_torch_nor_a_server_client() -> None:
    code = (
        "import tempfile\n"
        "from pathlib import Path\n"
        "from rag_tuned_memory import Memory, Settings\n"
        "with tempfile.TemporaryDirectory() as home:\n"
        "    with Memory('a', settings=Settings(home=Path(home), embedder='hashing')) as memory:\n"
        "        memory.record({'steps': [{'kind': 'message', 'text': 'the disk is full'}]})\n"
        "        assert memory.recall('disk').results\n"
    )
    assert not loaded_by(code) & {"torch", "transformers", "peft", "weaviate", "matplotlib", "openai"}


def test_the_command_line_starts_without_torch() -> None:
    code = (
        "import sys\nfrom rag_tuned_memory.cli import main\nassert main(['--help']) == 0\nsys.stdout = sys.__stdout__"
    )
    program = f"{code}\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
