"""A real vLLM, two adapters, and the local backend to hold it against."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real_vllm import RealVllm

from rag_tuned_memory.serving.local import LocalBackend
from rag_tuned_memory.serving.vllm import VllmBackend
from tiny_model import build_random_adapter


@pytest.fixture(scope="session")
def model(request: pytest.FixtureRequest) -> Path:
    """SmolLM2's folder; a server that was named must serve the same."""
    cache: Path = request.getfixturevalue("models_cache")
    return cache / "models" / "SmolLM2-135M-Instruct"


@pytest.fixture(scope="session")
def started(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm | None]:
    """The server that the tests started; None where a running one was named."""
    python = os.environ.get("RTM_TEST_VLLM_PYTHON")
    if not python:
        yield None
        return
    limits = ("--dtype", "float32", "--max-lora-rank", "16", "--max-loras", "2", "--max-cpu-loras", "4")
    server = RealVllm(Path(python), model, tmp_path_factory.mktemp("vllm"), *limits)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def url(started: RealVllm | None) -> str:
    return started.url if started else os.environ["RTM_TEST_VLLM"]


@pytest.fixture(scope="session")
def random_adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made = tmp_path_factory.mktemp("adapters")

    def build(name: str, **settings: Any) -> Path:
        folder = made / name
        return folder if folder.is_dir() else build_random_adapter(model, folder, **settings)

    return build


@pytest.fixture(scope="session")
def v1(random_adapter: Callable[..., Path]) -> Path:
    return random_adapter("ops-v1", seed=1, rank=8)


@pytest.fixture(scope="session")
def v2(random_adapter: Callable[..., Path]) -> Path:
    return random_adapter("ops-v2", seed=2, rank=16)


@pytest.fixture
async def backend(url: str, model: Path) -> AsyncIterator[VllmBackend]:
    """A client that leaves no adapter behind."""
    one = VllmBackend(url, model)
    yield one
    for name in await one.adapters():
        await one.unload_adapter(name)
    await one.close()


@pytest.fixture(scope="session")
def local(model: Path, v1: Path, v2: Path) -> Iterator[LocalBackend]:
    """Both adapters, and the base, in this process."""
    import anyio

    one = LocalBackend(model, device="cpu", dtype="float32")

    async def load() -> None:
        for path in (v1, v2):
            await one.load_adapter(path.name, path)

    anyio.run(load)
    yield one
    anyio.run(one.close)
