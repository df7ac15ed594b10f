from __future__ import annotations

from pathlib import Path

import pytest
from asking import ask

from rag_tuned_memory.errors import (
    AdapterDamaged,
    AdapterNotLoaded,
    BackendUnavailable,
    CanaryMismatch,
    InvalidInput,
)
from rag_tuned_memory.serving.base import InferenceBackend, Message, Request
from rag_tuned_memory.serving.fingerprint import make_fingerprint
from rag_tuned_memory.serving.scripted import ScriptedBackend

pytestmark = pytest.mark.anyio


def answer(request: Request) -> str:
    return f"{request.adapter or 'base'} says  one\ntwo three"


async def test_it_answers_streams_and_remembers() -> None:
    backend: InferenceBackend = ScriptedBackend(answer)
    (full,) = await backend.generate([ask("q")])
    assert full.text == "base says  one\ntwo three"
    assert (full.finish_reason, full.prompt_tokens, len(full.tokens)) == ("stop", 1, 5)
    (cut,) = await backend.generate([ask("q", max_new_tokens=2)])
    assert (cut.text, cut.finish_reason) == ("base says", "length")
    (stopped,) = await backend.generate([ask("q", stop=("\n",))])
    assert (stopped.text, stopped.finish_reason) == ("base says  one", "stop")
    chunks = [chunk async for chunk in backend.stream(ask("q"))]
    assert "".join(chunk.text for chunk in chunks) == full.text
    assert chunks[-1].generation == full
    assert await backend.count_tokens(["a b", ""]) == [2, 0]
    assert isinstance(backend, ScriptedBackend)
    assert len(backend.requests) == 4


async def test_adapters_and_fingerprints(tmp_path: Path) -> None:
    backend = ScriptedBackend(answer)
    with pytest.raises(AdapterNotLoaded):
        await backend.generate([ask("q", "v1")])
    await backend.load_adapter("v1", tmp_path)
    fingerprint = await make_fingerprint(backend, "v1", [([Message("user", "q")], "v1 says one")])
    assert fingerprint.margin == pytest.approx(10 / 3)
    with pytest.raises(InvalidInput, match="already loaded"):
        await backend.load_adapter("v1", tmp_path)
    with pytest.raises(CanaryMismatch):
        await backend.load_adapter("v2", tmp_path, fingerprint)
    with pytest.raises(AdapterDamaged):
        await backend.load_adapter("v3", tmp_path / "missing")
    assert await backend.adapters() == ["v1"]
    await backend.unload_adapter("v1")
    with pytest.raises(AdapterNotLoaded):
        await backend.unload_adapter("v1")
    await backend.close()
    with pytest.raises(BackendUnavailable):
        await backend.generate([ask("q")])
