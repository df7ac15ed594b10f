"""Fixtures that many tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from weaviate_server import HOW, Server, server

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def recorded_data() -> Path:
    """The folder of recorded histories, which is not part of the repository."""
    folder = Path(os.environ.get("RTM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no recorded data in {folder}: set RTM_TEST_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def weaviate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Weaviate server."""
    for one in server(tmp_path_factory.mktemp("weaviate")):
        if one is None:
            pytest.skip(HOW)
        yield one


@pytest.fixture(scope="session")
def models_cache() -> Path:
    """A cache that holds both default models; they are pulled once and kept, in RTM_CACHE or ``build``."""
    from rag_tuned_memory.models import CATALOG, pull

    cache = Path(os.environ.get("RTM_CACHE") or REPOSITORY / "build")
    for name in CATALOG:
        pull(name, cache=cache)
    return cache


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny, randomly initialised model with SmolLM2's chat template."""
    from tiny_model import build_tiny_model

    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
