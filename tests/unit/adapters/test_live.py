from __future__ import annotations

from pathlib import Path

import pytest

from rag_tuned_memory.adapters import AdapterRegistry, State, live
from rag_tuned_memory.adapters.live import LiveAdapters
from rag_tuned_memory.errors import AdapterNotServable, BackendUnavailable, CanaryMismatch
from rag_tuned_memory.serving.base import Fingerprint
from rag_tuned_memory.serving.scripted import ScriptedBackend
from served_adapter import register

pytestmark = pytest.mark.anyio


class Backend(ScriptedBackend):
    """A double whose loading can fail."""

    def __init__(self) -> None:
        super().__init__(lambda request: "yes")
        self.fails: Exception | None = None

    async def load_adapter(self, name: str, path: Path, fingerprint: Fingerprint | None = None) -> None:
        if self.fails:
            raise self.fails
        await super().load_adapter(name, path, None)  # it computes nothing that a fingerprint could be held against


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    return AdapterRegistry(tmp_path / "adapters")


@pytest.fixture
def backend() -> Backend:
    return Backend()


def accepted(registry: AdapterRegistry, folder: Path) -> str:
    """A version that may serve, and does not yet."""
    return register(registry, "ops", folder, ["one"], sequence=1).name


async def test_a_version_is_loaded_before_it_serves_and_the_old_one_leaves_after(
    registry: AdapterRegistry, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = LiveAdapters(registry, backend)
    first, second = accepted(registry, tmp_path / "1"), accepted(registry, tmp_path / "2")
    await here.roll_out(first, "good")
    assert (await here.current("ops")).name == first  # type: ignore[union-attr]
    await here.roll_out(second, "better")
    assert registry.state(first) is State.RETIRED
    assert sorted(await backend.adapters()) == [first, second]  # others may be asking it still
    monkeypatch.setattr(live.time, "monotonic", lambda now=live.time.monotonic: now() + live.DRAIN_SECONDS)
    assert (await here.current("ops")).name == second  # type: ignore[union-attr]
    assert await backend.adapters() == [second]


@pytest.mark.parametrize("error", [CanaryMismatch("not it", place="x"), BackendUnavailable("gone")])
async def test_where_it_cannot_be_loaded_the_old_one_goes_on_and_the_registry_says_so(
    registry: AdapterRegistry, backend: Backend, tmp_path: Path, error: Exception
) -> None:
    here = LiveAdapters(registry, backend)
    first, second = accepted(registry, tmp_path / "1"), accepted(registry, tmp_path / "2")
    await here.roll_out(first, "good")
    backend.fails = error
    with pytest.raises(type(error)):
        await here.roll_out(second, "better")
    assert (await here.refresh("ops")).name == first  # type: ignore[union-attr]
    assert registry.state(second) is State.ACCEPTED
    assert "was not rolled out" in registry.history(second)[-1].reason
    backend.fails = None
    await here.roll_out(second, "again")
    assert registry.serving("ops").name == second  # type: ignore[union-attr]


async def test_another_process_promoted_what_this_one_cannot_load(
    registry: AdapterRegistry, backend: Backend, tmp_path: Path
) -> None:
    here = LiveAdapters(registry, backend)
    first, second = accepted(registry, tmp_path / "1"), accepted(registry, tmp_path / "2")
    await here.roll_out(first, "good")
    registry.promote(second, "elsewhere")
    backend.fails = CanaryMismatch("not it", place=second)
    for _ in range(2):
        assert (await here.refresh("ops")).name == first  # type: ignore[union-attr]
    remarks = [line for line in registry.history(second) if "goes on answering" in line.reason]
    assert len(remarks) == 1
    registry.taint(first, "forgotten")
    with pytest.raises(CanaryMismatch):  # what may not answer does not, even where nothing else can
        await here.refresh("ops")


async def test_a_tainted_one_leaves_at_once(registry: AdapterRegistry, backend: Backend, tmp_path: Path) -> None:
    here = LiveAdapters(registry, backend)
    await here.roll_out(name := accepted(registry, tmp_path / "1"), "good")
    registry.taint(name, "forgotten")
    assert await here.refresh("ops") is None
    assert await backend.adapters() == []


async def test_what_the_server_lost_is_loaded_again(
    registry: AdapterRegistry, backend: Backend, tmp_path: Path
) -> None:
    here = LiveAdapters(registry, backend)
    await here.roll_out(name := accepted(registry, tmp_path / "1"), "good")
    await backend.unload_adapter(name)
    assert (await here.refresh("ops")).name == name  # type: ignore[union-attr]
    assert await backend.adapters() == [name]


async def test_what_may_not_serve_is_not_rolled_out(
    registry: AdapterRegistry, backend: Backend, tmp_path: Path
) -> None:
    here = LiveAdapters(registry, backend)
    name = accepted(registry, tmp_path / "1")
    registry.taint(name, "forgotten")
    with pytest.raises(AdapterNotServable):
        await here.roll_out(name, "good")
    assert await backend.adapters() == []
    assert registry.state(name) is State.TAINTED


def test_remarks_change_nothing(registry: AdapterRegistry, tmp_path: Path) -> None:
    first, second = accepted(registry, tmp_path / "1"), accepted(registry, tmp_path / "2")
    registry.promote(first, "good")
    registry.promote(second, "better")
    registry.remark(second, "seen on two servers")
    registry.remark(first, "seen on none")
    assert registry.serving("ops").name == second  # type: ignore[union-attr]
    assert registry.rollback("ops", "worse").name == first
