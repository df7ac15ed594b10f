"""Bad input of every kind: an error that names the place and the remedy, and nothing that was stored is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from incidents import episode
from rag_tuned_memory import Memory, Settings
from rag_tuned_memory.cli import main
from rag_tuned_memory.distil.lock import RunLock
from rag_tuned_memory.embedding import HashingEmbedder
from rag_tuned_memory.embedding.base import Vectors
from rag_tuned_memory.errors import (
    DistilBusy,
    EmbedderMismatch,
    InvalidTrajectory,
    InvalidVector,
    ModelNotPulled,
    StoreCorrupt,
    StoreFull,
)
from rag_tuned_memory.serving.scripted import ScriptedBackend
from rag_tuned_memory.store import open_store

MEGABYTE = 1_000_000


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    home, cache = tmp_path / "home", tmp_path / "cache"
    monkeypatch.setenv("RTM_HOME", str(home))
    monkeypatch.setenv("RTM_CACHE", str(cache))
    monkeypatch.setenv("RTM_EMBEDDER", "hashing")
    return Settings()


@pytest.fixture
def earlier(settings: Settings) -> Iterator[str]:
    """An episode that was recorded before; it is there unchanged when the test has ended."""
    with Memory("operations", settings=settings) as memory:
        identity = memory.record(episode(1)).id
        before = list(memory.export())
    yield identity
    with Memory("operations", settings=settings) as memory:
        assert list(memory.export()) == before
        assert memory.recall("which disk is full?").results[0].trajectory_id == identity


def steps(*given: dict[str, Any]) -> dict[str, Any]:
    return episode(2, steps=list(given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (steps(), r"steps: .*at least 1 item.*nothing was stored\."),
        ({}, "steps: Field required"),
        (steps({"kind": "dream", "text": "x"}), "steps.0.kind: .*'message', 'thought', 'tool_call'"),
        (steps({"kind": "message"}), "steps.0: .*a step needs text, a tool, arguments or an error"),
        (steps({"kind": "message", "text": "x", "colour": "red"}), "steps.0.colour: "),
        (steps({"kind": "message", "text": "x" * 50 * MEGABYTE}), r"steps.0: 50,000,0\d\d bytes, at most 1,000,000"),
        (steps({"kind": "message", "text": "\ud800"}), "steps.0.text: .*not valid UTF-8 at character 0"),
        (steps({"kind": "message", "text": "x", "metadata": {"p": float("nan")}}), r"steps.0.*(NaN|JSON|finite)"),
        (episode(2, outcome={"score": float("nan")}), "outcome.score: .*finite number"),
        (episode(2, started_at="last week"), "started_at: "),
        (episode(2, id="11111111-1111-1111-1111-111111111111"), "is not the id of this trajectory"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_a_bad_trajectory(settings: Settings, earlier: str, given: dict[str, Any], message: str) -> None:
    with Memory("operations", settings=settings) as memory, pytest.raises(InvalidTrajectory, match=message):
        memory.record(given)


def test_a_step_that_is_too_large_names_the_remedy(settings: Settings, earlier: str) -> None:
    with (
        Memory("operations", settings=settings) as memory,
        pytest.raises(InvalidTrajectory, match="RTM_MAX_STEP_BYTES"),
    ):
        memory.record(steps({"kind": "message", "text": "x" * 50 * MEGABYTE}))


class Broken(HashingEmbedder):
    """An embedder that gives NaN for passages."""

    async def embed(  # type: ignore[override]
        self, texts: Sequence[str], *, kind: Literal["passage", "query"] = "passage"
    ) -> Vectors:
        vectors = await super().embed(texts, kind=kind)
        vectors[-1, 3] = float("nan")
        return vectors


def test_nan_in_a_vector(settings: Settings, earlier: str) -> None:
    with Memory("operations", settings=settings, embedder=Broken()) as memory:
        with pytest.raises(InvalidVector, match=r"vector 3 holds NaN or infinity\. Check the embedder; nothing was"):
            memory.record(episode(2))
        with pytest.raises(InvalidVector, match="vector 0 holds NaN"):
            memory.recall("disk")
        errors = [str(one.error) for one in memory.record_many([episode(2), episode(3)])]
        assert all("holds NaN or infinity" in error for error in errors)


def test_another_embedder(settings: Settings, earlier: str) -> None:
    with Memory("operations", settings=settings, embedder=HashingEmbedder(64)) as memory:
        for attempt in (lambda: memory.record(episode(2)), lambda: memory.recall("disk")):
            with pytest.raises(EmbedderMismatch, match=r"hashing.*dimension 256.*dimension 64.*`rtm reindex`"):
                attempt()


def test_malformed_json_on_a_line(
    settings: Settings, earlier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text('{"steps": [}\n')
    assert main(["import", str(file), "-n", "operations", "--format", "jsonl"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}:1: ")
    assert error.count("\n") == 1
    assert "--on-error skip" in error


def test_a_damaged_database_is_told_and_not_touched(settings: Settings, tmp_path: Path) -> None:
    with Memory("operations", settings=settings) as memory:
        memory.record(episode(1))
    file = settings.home / "memory.db"
    whole = file.read_bytes()
    broken = b"\xff" * 4096 + whole[4096:]
    file.write_bytes(broken)
    with (
        Memory("operations", settings=settings) as memory,
        pytest.raises(StoreCorrupt, match=rf"{file}.*Move the file.*`rtm import`"),
    ):
        memory.record(episode(2))
    assert file.read_bytes() == broken
    file.write_bytes(whole)
    with Memory("operations", settings=settings) as memory:
        assert memory.recall("disk").results


def test_another_program_s_database(settings: Settings, earlier: str, tmp_path: Path) -> None:
    import sqlite3

    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE diary (entry TEXT)")
    before = foreign.read_bytes()
    with (
        Memory("operations", settings=settings, store=open_store(f"sqlite:///{foreign}")) as memory,
        pytest.raises(StoreCorrupt, match="not an episode store"),
    ):
        memory.record(episode(2))
    assert foreign.read_bytes() == before


def test_a_model_that_was_not_pulled(
    settings: Settings, earlier: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Memory("operations", settings=settings) as memory:
        assert memory.recall("disk").results  # needs no language model
        with pytest.raises(ModelNotPulled, match=rf"{settings.cache}.*Run: rtm pull SmolLM2-135M-Instruct"):
            memory.answer("which disk is full?")
        with pytest.raises(ModelNotPulled, match="rtm pull"):
            memory.distil()
    monkeypatch.setenv("RTM_EMBEDDER", "all-MiniLM-L6-v2")
    assert main(["recall", "disk", "-n", "operations"]) == 1
    assert "Run: rtm pull all-MiniLM-L6-v2" in capsys.readouterr().err


def test_no_space_left(settings: Settings, earlier: str) -> None:
    room = (settings.home / "memory.db").stat().st_size + 64 * 1024
    store = open_store(settings.store_url, max_bytes=room)
    with Memory("operations", settings=settings, store=store) as memory:
        big = episode(2, steps=[{"kind": "message", "text": f"{n} " * 20_000} for n in range(8)])
        with pytest.raises(StoreFull, match=r"memory\.db: no space is left to write\. Free some space"):
            memory.record(big)
        assert memory.stats().store.trajectories == 1
        memory._running.portal().call(store.close)


def test_a_second_worker(
    settings: Settings,
    earlier: str,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RTM_MODEL", str(tiny_model))
    message = r"namespace 'operations' is being distilled by process \d+ on .*Wait until it ends"
    with RunLock(settings.runs_dir, "operations"):
        backend = ScriptedBackend(lambda request: "")
        with Memory("operations", settings=Settings(), backend=backend) as memory:
            with pytest.raises(DistilBusy, match=message):
                memory.distil()
            assert memory.recall("disk").results
        assert main(["distil", "-n", "operations"]) == 1
        assert "is being distilled by process" in capsys.readouterr().err
        once = ["worker", "-n", "operations", "--once", "--every-n", "1", "--min-trajectories", "1", "--json"]
        assert main(once) == 0  # it is left to the other one, quietly
        captured = capsys.readouterr()
        assert json.loads(captured.out)["kind"] == "busy"
        assert captured.err == ""


@pytest.mark.parametrize("namespace", ["", "  ", "a\nb", "a\x00b", "x" * 257, "\ud800"])
def test_a_bad_namespace(settings: Settings, earlier: str, namespace: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        Memory(namespace, settings=settings)
