from __future__ import annotations

import sys
from collections import namedtuple
from pathlib import Path

import pytest

from incidents import episode
from rag_tuned_memory.embedding import HashingEmbedder
from rag_tuned_memory.memory import Memory
from rag_tuned_memory.memory.health import Finding, check_health
from rag_tuned_memory.memory.wiring import Parts
from rag_tuned_memory.settings import Settings
from served_adapter import register

pytestmark = pytest.mark.anyio


async def look(settings: Settings) -> list[Finding]:
    parts = Parts(settings)
    try:
        return await check_health(parts)
    finally:
        await parts.close()


async def problems(settings: Settings) -> list[str]:
    return [f"{one.subject}: {one.detail}" for one in await look(settings) if not one.ok]


@pytest.fixture
def healthy(settings: Settings, tiny_model: Path, tmp_path: Path) -> Settings:
    settings = settings.model_copy(update={"model": str(tiny_model)})
    with Memory("operations", settings=settings) as memory:
        receipt = memory.record(episode())
        register(memory.registry, "operations", tmp_path, [receipt.id])
    return settings


async def test_all_is_well(healthy: Settings) -> None:
    assert await problems(healthy) == []
    assert {one.subject.split()[0] for one in await look(healthy)} == {"store", "model", "adapter", "extra", "disk"}


async def test_a_model_that_is_not_there(healthy: Settings) -> None:
    [problem] = await problems(healthy.model_copy(update={"model": "SmolLM2-135M-Instruct"}))
    assert problem.endswith("Run: rtm pull SmolLM2-135M-Instruct")


async def test_weights_of_an_adapter_that_were_changed(healthy: Settings) -> None:
    (healthy.adapters_dir / "operations-v1" / "adapter_model.safetensors").write_bytes(b"other")
    [problem] = await problems(healthy)
    assert problem.startswith("adapter operations-v1")
    assert "differs from its checksum" in problem


async def test_a_damaged_database(healthy: Settings) -> None:
    (healthy.home / "memory.db").write_bytes(b"no database" * 1000)
    [problem] = await problems(healthy)
    assert "not a SQLite database" in problem
    assert "rtm import" in problem


async def test_vectors_of_another_embedder(healthy: Settings) -> None:
    with Memory("other", settings=healthy, embedder=HashingEmbedder(32)) as memory:
        memory.record(episode())
    [problem] = await problems(healthy)
    assert "vectors of namespace 'other'" in problem
    assert "rtm reindex -n 'other'" in problem


async def test_a_part_that_is_not_installed(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else object())
    [problem] = await problems(healthy)
    assert problem == 'extra [local]: peft is not installed. Run: pip install "rag-tuned-memory[local]"'


async def test_a_disk_that_is_nearly_full(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    found = await problems(healthy)
    assert len(found) == 2
    assert all("0.0 GB free" in one and "point RTM_" in one for one in found)
