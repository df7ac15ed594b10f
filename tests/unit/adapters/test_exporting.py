"""Adapters written for servers: what is written, what is refused, and the commands that go with it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.adapters.exporting import export_adapter
from rag_tuned_memory.adapters.files import relative_files
from rag_tuned_memory.adapters.launching import launch
from rag_tuned_memory.adapters.manifest import Draft
from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.cli import main
from rag_tuned_memory.errors import AdapterDamaged, AdapterError, AdapterNotFound, AdapterNotServable, InvalidInput
from rag_tuned_memory.serving.compatibility import path_problems, problems
from rag_tuned_memory.serving.folder import identity
from rag_tuned_memory.serving.portable import portable_faults

TGI_ENTRY = re.compile(r"^([^=@]+)(?:=([^@]+))?(?:@(.+))?$")
"""How TGI 3.3 reads an entry of LORA_ADAPTERS."""


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with real weights, and beside them what a run leaves of the memory."""
    from tiny_model import build_random_adapter

    folder = build_random_adapter(tiny_model, tmp_path_factory.mktemp("run"))
    (folder / "README.md").unlink(missing_ok=True)
    for private in ("dataset.jsonl", "learned.json"):
        (folder / private).write_text("what the user said")
    return folder


@pytest.fixture
def registered(
    registry: AdapterRegistry, trained: Path, tiny_model: Path, draft: Callable[..., Draft]
) -> Callable[..., str]:
    def register(**changes: Any) -> str:
        values = {"base_model": "tiny", "base_revision": identity(tiny_model), **changes}
        return registry.register("alice", trained, draft(**values)).name

    return register


@pytest.fixture
def name(registry: AdapterRegistry, registered: Callable[..., str]) -> str:
    name = registered()
    registry.conclude(name)
    return name


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "shared"


def test_for_tgi_the_adapter_and_a_base_model_are_written(
    registry: AdapterRegistry, name: str, tiny_model: Path, to: Path
) -> None:
    done = export_adapter(registry, name, "tgi", to, tiny_model)
    base = to / "base" / identity(tiny_model).replace("@", "-")
    assert done.written == (base, to / "adapters" / name)
    assert sorted(relative_files(done.folder)) == ["adapter_config.json", "adapter_model.safetensors"]
    assert portable_faults(base) == []
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base) == done.server_base
    source = registry.path(name)
    assert (done.folder / "adapter_model.safetensors").read_bytes() == (
        source / "adapter_model.safetensors"
    ).read_bytes()
    original = json.loads((source / "adapter_config.json").read_text())
    assert {**config, "base_model_name_or_path": None} == {**original, "base_model_name_or_path": None}
    assert problems(done.folder, base, "tgi") == []


def test_nothing_of_what_was_learned_leaves(registry: AdapterRegistry, name: str, tiny_model: Path, to: Path) -> None:
    assert (registry.files_of(name) / "dataset.jsonl").exists()
    export_adapter(registry, name, "tgi", to, tiny_model)
    for file in to.rglob("*"):
        assert file.is_dir() or b"what the user said" not in file.read_bytes()
        assert file.name not in ("manifest.json", "dataset.jsonl", "learned.json", "state.jsonl")


@pytest.mark.parametrize("server", ["tgi", "vllm"])
def test_again_changes_nothing(registry: AdapterRegistry, name: str, tiny_model: Path, to: Path, server: Any) -> None:
    first = export_adapter(registry, name, server, to, tiny_model)
    times = {file: file.stat().st_mtime_ns for file in to.rglob("*") if file.is_file()}
    again = export_adapter(registry, name, server, to, tiny_model, write_base=True if server == "tgi" else None)
    assert again.written == ()
    assert again.server_base == first.server_base
    assert {file: file.stat().st_mtime_ns for file in to.rglob("*") if file.is_file()} == times


def test_the_next_version_shares_the_base_model(
    registry: AdapterRegistry, registered: Callable[..., str], tiny_model: Path, to: Path
) -> None:
    names = [registered(), registered()]
    for one in names:
        registry.conclude(one)
    first, second = (export_adapter(registry, one, "tgi", to, tiny_model) for one in names)
    assert len(first.written) == 2
    assert second.written == (to / "adapters" / names[1],)
    assert second.base_folder == first.base_folder


def test_for_vllm_only_the_adapter_is_written(registry: AdapterRegistry, name: str, tiny_model: Path, to: Path) -> None:
    done = export_adapter(registry, name, "vllm", to, tiny_model)
    assert done.written == (to / "adapters" / name,)
    assert done.server_base == str(tiny_model)
    assert not (to / "base").exists()
    with_base = export_adapter(registry, name, "vllm", to.with_name("other"), tiny_model, write_base=True)
    assert with_base.server_base == str(with_base.base_folder)
    assert portable_faults(with_base.base_folder) == []


def test_the_base_name_and_the_mount_are_the_server_s(
    registry: AdapterRegistry, name: str, tiny_model: Path, to: Path
) -> None:
    done = export_adapter(registry, name, "vllm", to, tiny_model, base_name="org/tiny", mount="/memory")
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny" == done.server_base
    assert done.server_path == f"/memory/adapters/{name}"
    tgi = export_adapter(registry, name, "tgi", to.with_name("tgi"), tiny_model, mount="/memory")
    assert tgi.server_base.startswith("/memory/base/tiny-")
    with pytest.raises(AdapterError, match=r"adapter_config\.json differs"):
        export_adapter(registry, name, "vllm", to, tiny_model, base_name="org/other", mount="/memory")


@pytest.mark.parametrize("state", ["candidate", "rejected", "tainted"])
def test_what_does_not_serve_is_not_exported(
    registry: AdapterRegistry, registered: Callable[..., str], tiny_model: Path, to: Path, state: str
) -> None:
    name = registered(metrics={}) if state == "rejected" else registered()
    if state != "candidate":
        registry.conclude(name)
    if state == "tainted":
        registry.taint(name, "forgotten")
    with pytest.raises(AdapterNotServable, match=state):
        export_adapter(registry, name, "tgi", to, tiny_model)
    assert not to.exists()


def test_one_that_is_tainted_meanwhile_does_not_stay(
    registry: AdapterRegistry, name: str, tiny_model: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rag_tuned_memory.adapters import exporting

    real = exporting.write_once

    def write_once(*given: Any) -> bool:
        done = real(*given)
        registry.taint(name, "forgotten just now")
        return done

    monkeypatch.setattr(exporting, "write_once", write_once)
    with pytest.raises(AdapterNotServable, match="tainted"):
        export_adapter(registry, name, "vllm", to, tiny_model)
    assert list((to / "adapters").iterdir()) == []


def test_damaged_files_are_not_exported(registry: AdapterRegistry, name: str, tiny_model: Path, to: Path) -> None:
    weights = registry.files_of(name) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(AdapterDamaged):
        export_adapter(registry, name, "tgi", to, tiny_model)
    assert not to.exists()


def test_weights_that_change_meanwhile_do_not_stay(
    registry: AdapterRegistry, name: str, tiny_model: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rag_tuned_memory.adapters import exporting

    weights = registry.files_of(name) / "adapter_model.safetensors"
    real = exporting.write_once

    def write_once(*given: Any) -> bool:
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
        return real(*given)

    monkeypatch.setattr(exporting, "write_once", write_once)
    with pytest.raises(AdapterDamaged, match="changed while"):
        export_adapter(registry, name, "vllm", to, tiny_model)
    assert list((to / "adapters").iterdir()) == []


def test_another_base_model_is_refused(
    registry: AdapterRegistry, name: str, tiny_model: Path, to: Path, tmp_path: Path
) -> None:
    from tiny_model import build_tiny_model

    other = build_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(AdapterError, match=r"trained on tiny@.*, and this is other@.*RTM_MODEL"):
        export_adapter(registry, name, "tgi", to, other)
    # …while the exported one is the same model, and can take the original's place
    base = export_adapter(registry, name, "tgi", to, tiny_model).base_folder
    assert export_adapter(registry, name, "tgi", to, base).written == ()


def test_what_the_server_cannot_serve_is_refused(
    registry: AdapterRegistry, name: str, tiny_model: Path, to: Path
) -> None:
    with pytest.raises(AdapterNotServable, match=r"rank 4 is above .* 1\. Start vLLM with --max-lora-rank 8"):
        export_adapter(registry, name, "vllm", to, tiny_model, max_lora_rank=1)
    with pytest.raises(InvalidInput, match="a space breaks"):
        export_adapter(registry, name, "tgi", to / "a b", tiny_model)
    with pytest.raises(InvalidInput, match="absolute"):
        export_adapter(registry, name, "tgi", to, tiny_model, mount="memory")
    with pytest.raises(AdapterNotFound):
        export_adapter(registry, name, "tgi", to, tiny_model, namespace="bob")
    assert not to.exists()


def test_tgi_is_not_given_a_base_model_that_it_reads_wrongly(
    registry: AdapterRegistry, name: str, tiny_model: Path, to: Path
) -> None:
    with pytest.raises(AdapterError, match=r"not read .* right: .*rope_theta.*Export the base model too"):
        export_adapter(registry, name, "tgi", to, tiny_model, write_base=False)
    assert export_adapter(registry, name, "tgi", to, tiny_model, write_base=False, base_name="org/tiny").written


def test_the_command_for_tgi(registry: AdapterRegistry, name: str, tiny_model: Path, to: Path) -> None:
    done = export_adapter(registry, name, "tgi", to, tiny_model)
    start = launch(done)
    entry = TGI_ENTRY.match(start.environment["LORA_ADAPTERS"])
    assert entry
    assert entry.groups() == (name, done.server_path, None)
    assert path_problems(done.server_path, "tgi") == []
    assert start.command[:3] == ("text-generation-launcher", "--model-id", done.server_base)
    assert shlex.split(start.shell) == [f"LORA_ADAPTERS={start.environment['LORA_ADAPTERS']}", *start.command]
    assert start.load_shell == ""


def test_the_commands_for_vllm(registry: AdapterRegistry, name: str, tiny_model: Path, to: Path) -> None:
    done = export_adapter(registry, name, "vllm", to / "a b", tiny_model)
    start = launch(done)
    words = shlex.split(start.shell)
    assert words[0] == "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
    assert words[1:4] == ["vllm", "serve", done.server_base]
    assert words[words.index("--max-lora-rank") + 1] == "8"  # the least that holds rank 4
    sent = json.loads(shlex.split(start.load_shell)[-1])
    assert sent == {"lora_name": name, "lora_path": done.server_path}
    # vLLM's filesystem resolver loads <folder>/<name> where these two agree exactly
    config = json.loads((Path(sent["lora_path"]) / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["base_model_name_or_path"] == words[3]


def test_from_the_command_line(
    registry: AdapterRegistry,
    name: str,
    tiny_model: Path,
    to: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RTM_HOME", str(registry.folder.parent))
    monkeypatch.setenv("RTM_MODEL", str(tiny_model))
    command = ["adapters", "export", name, "-n", "alice", "--for", "tgi", "--to", str(to)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"written: {to / 'adapters' / name}" in out
    assert f"  LORA_ADAPTERS={name}={to / 'adapters' / name} text-generation-launcher --model-id {to}" in out
    assert main(command) == 0
    assert "was there already" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["environment"] == {"LORA_ADAPTERS": f"{name}={to / 'adapters' / name}"}
    assert told["written"] == []
    vllm = ["adapters", "export", name, "-n", "alice", "--for", "vllm", "--to", f"{to}2"]
    assert main(vllm) == 0
    assert "or tell a running one:\n  curl" in capsys.readouterr().out
    assert (
        main(["adapters", "export", name, "-n", "alice", "--for", "vllm", "--to", str(to), "--max-lora-rank", "0"]) == 1
    )
    assert "--max-lora-rank 0" in capsys.readouterr().err
    assert main([*command[:-2], "--for", "sglang", "--to", str(to)]) == 2
