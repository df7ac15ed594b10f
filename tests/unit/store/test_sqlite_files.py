"""Files that are damaged, foreign, full, locked or not writable: a clear error, and nothing stored is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import apsw
import numpy as np
import pytest

from rag_tuned_memory.embedding.base import EmbedderIdentity
from rag_tuned_memory.errors import (
    InvalidInput,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreTooNew,
    TrajectoryNotFound,
)
from rag_tuned_memory.store import Passage, open_store
from rag_tuned_memory.store.sqlite import SqliteStore
from rag_tuned_memory.store.sqlite.failures import translate
from rag_tuned_memory.store.sqlite.migrations import APPLICATION_ID, MIGRATIONS
from rag_tuned_memory.trajectory import Step, StepKind, Trajectory

pytestmark = pytest.mark.anyio

EMBEDDER = EmbedderIdentity(model="test", revision="1", dimension=8)


async def record(store: SqliteStore, number: int, size: int = 20) -> Trajectory:
    text = f"episode {number} " + "x" * size
    one = Trajectory(namespace="alice", source_id=str(number), steps=(Step(kind=StepKind.MESSAGE, text=text),))
    passage = Passage(one.id, 0, 0, StepKind.MESSAGE, text, text)
    await store.put(one, [passage], np.eye(1, 8, number % 8, dtype=np.float32), EMBEDDER)
    return one


async def written(path: Path, episodes: int) -> list[Trajectory]:
    store = SqliteStore(path)
    done = [await record(store, i) for i in range(episodes)]
    await store.close()
    return done


async def test_write_ahead_log_full_sync_and_version(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "new" / "folder" / "memory.db")
    await record(store, 1)
    with store._pool.writer() as db:
        assert db.pragma("journal_mode") == "wal"
        assert db.pragma("synchronous") == 2
        assert db.pragma("user_version") == len(MIGRATIONS)
        assert db.pragma("application_id") == APPLICATION_ID
    with store._pool.reader() as db, pytest.raises(apsw.ReadOnlyError):
        db.execute("DELETE FROM trajectories")
    await store.close()
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["memory.db"]


@pytest.mark.parametrize("content", [b"this is no database " * 500, b"SQLite format 3\x00" + b"\xff" * 8000])
async def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "memory.db"
    path.write_bytes(content)
    store = open_store(f"sqlite:///{path}")
    with pytest.raises(StoreCorrupt, match=rf"{path}: .*rtm import"):
        await store.namespaces()
    assert [str(path) in problem for problem in await store.check()] == [True]
    await store.close()
    assert path.read_bytes() == content


async def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    other = apsw.Connection(str(path))
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreCorrupt, match="not an episode store"):
        await SqliteStore(path).namespaces()
    assert path.read_bytes() == before


async def test_a_newer_versions_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    await written(path, 1)
    db = apsw.Connection(str(path))
    db.pragma("user_version", len(MIGRATIONS) + 1)
    db.close()
    with pytest.raises(StoreTooNew, match="Upgrade"):
        await SqliteStore(path).namespaces()


async def test_damage_in_the_middle_of_a_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    await written(path, 60)
    content = bytearray(path.read_bytes())
    for start in range(8192 * 3, len(content), 8192):
        content[start : start + 4000] = os.urandom(4000)
    path.write_bytes(content)
    store = SqliteStore(path)
    problems = await store.check()
    assert problems
    assert str(path) in problems[0]
    with pytest.raises(StoreCorrupt, match=f"{path}.*backup"):
        [s async for s in store.scan("alice")]
    await store.close()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("DELETE FROM vectors WHERE passage = 2", "1 passages without a vector"),
        ("DELETE FROM signatures WHERE passage = 2", "1 passages without a signature"),
        ("INSERT INTO signatures VALUES (1, 99, x'00')", "1 signatures without a passage"),
        ("INSERT INTO vectors VALUES (99, x'00')", "1 vectors without a passage"),
        ("DELETE FROM trajectories WHERE id = 2", "1 passages without a trajectory"),
        ("UPDATE passages SET indexed = 'other' WHERE id = 2", "text index differs"),
        ("DELETE FROM text_1 WHERE rowid = 2", "text index"),
        ("UPDATE trajectories SET json = replace(json, 'episode 2', 'episode X')", "differs from its checksum"),
        ("UPDATE trajectories SET json = '{' WHERE id = 2", "cannot be read"),
    ],
)
async def test_check_finds_what_does_not_fit_together(tmp_path: Path, damage: str, problem: str) -> None:
    path = tmp_path / "memory.db"
    await written(path, 5)
    db = apsw.Connection(str(path))
    db.execute(damage)
    db.close()
    store = SqliteStore(path)
    problems = await store.check()
    assert any(problem in found for found in problems), problems
    assert all("`rtm " in found for found in problems)
    await store.close()


async def test_a_trajectory_whose_text_is_damaged_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    one = (await written(path, 1))[0]
    db = apsw.Connection(str(path))
    db.execute("UPDATE trajectories SET json = '{'")
    db.close()
    store = SqliteStore(path)
    with pytest.raises(StoreCorrupt, match=one.id):
        await store.get("alice", one.id)
    await store.close()


async def fill_until_full(store: SqliteStore) -> tuple[list[Trajectory], str]:
    kept: list[Trajectory] = []
    for number in range(10_000):
        try:
            kept.append(await record(store, number, size=20_000))
        except StoreFull as error:
            return kept, str(error)
    raise AssertionError("the disk never filled")


async def check_kept(store: SqliteStore, kept: list[Trajectory]) -> None:
    assert kept
    assert await store.check() == []
    assert [s.trajectory async for s in store.scan("alice")] == kept
    with pytest.raises(TrajectoryNotFound):
        await store.get(
            "alice", Trajectory(**kept[0].model_dump(exclude={"id", "source_id"}), source_id=str(len(kept))).id
        )


async def test_a_full_file_keeps_what_was_acknowledged_and_can_be_used_on(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "memory.db", max_bytes=1_000_000)
    kept, message = await fill_until_full(store)
    assert message.startswith(f"{store.path}: no space is left")
    await check_kept(store, kept)
    assert await store.delete("alice", [one.id for one in kept[:5]])
    await record(store, 20_000)
    await store.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB; where this user may not mount one, the test says so."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_keeps_what_was_acknowledged(tiny_disk: Path) -> None:
    store = SqliteStore(tiny_disk / "memory.db")
    kept, message = await fill_until_full(store)
    assert message.startswith(f"{store.path}: no space is left")
    await check_kept(store, kept)
    await store.close()
    opened = SqliteStore(tiny_disk / "memory.db")
    await check_kept(opened, kept)
    await opened.close()


async def test_a_disk_without_room_for_a_new_store(tiny_disk: Path) -> None:
    with (tiny_disk / "other").open("wb") as other, pytest.raises(OSError):
        other.write(b"x" * 4_000_000)
    with pytest.raises(StoreFull, match="Free some space"):
        await SqliteStore(tiny_disk / "memory.db").namespaces()


async def test_a_lock_held_too_long(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    await written(path, 1)
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    store = SqliteStore(path, busy_timeout=0.1)
    with pytest.raises(StoreBusy, match=f"{path}.*Try again"):
        await record(store, 2)
    assert (await store.stats("alice")).trajectories == 1, "reading goes on meanwhile"
    other.execute("ROLLBACK")
    other.close()
    await record(store, 2)
    await store.close()


async def test_a_folder_in_the_files_place(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        await SqliteStore(tmp_path).namespaces()


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="RTM_STORE"):
        await SqliteStore(tmp_path / "file" / "deeper" / "memory.db").namespaces()


def test_a_file_that_may_only_be_read(tmp_path: Path) -> None:
    path = str(tmp_path / "memory.db")
    apsw.Connection(path).execute("CREATE TABLE t (x)").connection.close()
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    with pytest.raises(apsw.ReadOnlyError) as error:
        db.execute("INSERT INTO t VALUES (1)")
    assert "write permission" in str(translate(error.value, path))


@pytest.mark.parametrize(
    "url", ["", "memory.db", "sqlite:", "sqlite:///", "sqlite://x", "postgres://host/db", "SQLITE:///x"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"RTM_STORE.*sqlite:///path"):
        open_store(url)


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "memory.db")
    await record(store, 1)
    await store.close()
    with pytest.raises(StoreError, match="was closed"):
        await record(store, 2)


async def test_a_store_used_after_a_fork_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(tmp_path / "memory.db")
    await record(store, 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        with pytest.raises(StoreError, match="fork"):
            await store.namespaces()
    await store.close()


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_deleted_text_is_gone_from_the_files(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    store = SqliteStore(path)
    for number in range(20):
        await record(store, number)
    text = "the watchword is zanzibarious"
    secret = Trajectory(namespace="alice", source_id="secret", steps=(Step(kind=StepKind.MESSAGE, text=text),))
    passage = Passage(secret.id, 0, 0, StepKind.MESSAGE, text, text)
    await store.put(secret, [passage], np.eye(1, 8, dtype=np.float32), EMBEDDER)
    assert b"zanzibari" in all_bytes(tmp_path)
    await store.delete("alice", [secret.id])
    left = all_bytes(tmp_path)
    assert b"zanzibari" not in left
    assert secret.id.encode() not in left
    await store.close()


def test_one_store_serves_several_event_loops(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "memory.db")
    for number in range(3):
        anyio.run(record, store, number)
    assert anyio.run(store.stats, "alice").trajectories == 3
    anyio.run(store.close)


async def test_the_event_loop_goes_on_while_a_write_waits(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    await written(path, 1)
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    store = SqliteStore(path)
    ticks = 0
    async with anyio.create_task_group() as tasks:
        for number in range(60):  # more than the threads that anyio has
            tasks.start_soon(record, store, number)
        for _ in range(20):
            await anyio.sleep(0.01)
            ticks += 1
            assert (await store.stats("alice")).trajectories == 1
        other.execute("ROLLBACK")
    other.close()
    assert ticks == 20
    assert (await store.stats("alice")).trajectories == 60
    await store.close()
