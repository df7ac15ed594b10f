"""A Weaviate server as operators run it: with keys, backups, a full disk, or started by this package."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from store_helpers import episode, passages_of, record, vector

from rag_tuned_memory.errors import StoreError, StoreFull
from rag_tuned_memory.store import EpisodeStore, open_store
from weaviate_server import HOW, Server, free_ports, started

pytestmark = pytest.mark.anyio

ONE = episode("alice", "1", "disk full on orion", "restarted orion")


@pytest.fixture
def binary() -> str:
    found = shutil.which("weaviate")
    if found is None:
        pytest.skip(HOW)
    return found


@asynccontextmanager
async def opened(url: str, key: str | None = None) -> AsyncIterator[EpisodeStore]:
    store = open_store(url, api_key=key)
    try:
        yield store
    finally:
        await store.close()


async def test_a_key_is_needed_and_the_right_one_opens(binary: str, tmp_path: Path) -> None:
    keys = {
        "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "false",
        "AUTHENTICATION_APIKEY_ENABLED": "true",
        "AUTHENTICATION_APIKEY_ALLOWED_KEYS": "s3cret",
        "AUTHENTICATION_APIKEY_USERS": "memory",
    }
    with started(binary, tmp_path, **keys) as server:
        for key in (None, "wrong"):
            async with opened(server.url(), key) as store:
                with pytest.raises(StoreError, match="RTM_WEAVIATE_API_KEY") as refused:
                    await record(store, ONE)
            assert "s3cret" not in str(refused.value)
        async with opened(server.url(), "s3cret") as store:
            assert await record(store, ONE)
            assert await store.passages("alice", ONE.id) == passages_of(ONE)


async def test_a_read_only_server_says_so_and_keeps_what_it_has(binary: str, tmp_path: Path) -> None:
    """The state into which a server goes whose disk is nearly full."""
    other = episode("alice", "2", "disk full on vega")
    with started(binary, tmp_path) as server:
        async with opened(server.url(deadline=20)) as store:
            await record(store, ONE)
            set_shards(server, "READONLY")
            with pytest.raises(StoreFull, match="DISK_USE_READONLY_PERCENTAGE"):
                await record(store, other)
            with pytest.raises(StoreError, match="DISK_USE_READONLY_PERCENTAGE"):
                await store.delete("alice", [ONE.id])
            assert await store.passages("alice", ONE.id) == passages_of(ONE)
            set_shards(server, "READY")
            assert await record(store, other)
            assert await store.delete("alice", [ONE.id]) == [ONE.id]
            await store.mend()
            assert await store.check() == []


def set_shards(server: Server, status: str) -> None:
    for one in httpx.get(server.rest("schema"), timeout=60).json()["classes"]:
        shards = server.rest(f"schema/{one['class']}/shards")
        for shard in httpx.get(shards, timeout=60).json():
            httpx.put(f"{shards}/{shard['name']}", json={"status": status}, timeout=60).raise_for_status()


async def test_a_backup_restores_all_collections_together(binary: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    backups = {"ENABLE_MODULES": "backup-filesystem", "BACKUP_FILESYSTEM_PATH": str(folder)}
    other = episode("bob", "1", "not alice's")
    with started(binary, tmp_path / "first", **backups) as server:
        async with opened(server.url()) as store:
            for one in (ONE, other):
                await record(store, one)
            await store.set_meta("alice", "mark", "x")
        backup(server, "backups/filesystem", {"id": "one"})
    with started(binary, tmp_path / "second", **backups) as server:
        backup(server, "backups/filesystem/one/restore", {})
        async with opened(server.url()) as store:
            assert await store.namespaces() == ["alice", "bob"]
            assert await store.get_meta("alice", "mark") == "x"
            assert (await store.get("alice", ONE.id)).trajectory == ONE
            found = await store.candidates("alice", "orion", vector("disk full on orion"), limit=5)
            assert {candidate.passage for candidate in found} == set(passages_of(ONE))
            assert await store.check() == []


def backup(server: Server, path: str, body: dict[str, str]) -> None:
    """Start a backup or a restoration and wait for its end."""
    httpx.post(server.rest(path), json=body, timeout=60).raise_for_status()
    status = path if "restore" in path else f"{path}/{body['id']}"
    for _ in range(300):
        said = httpx.get(server.rest(status), timeout=60).json()
        if said["status"] == "SUCCESS":
            return
        assert said["status"] != "FAILED", said
    raise AssertionError(said)


PROGRAM = """
import anyio, os
from store_helpers import episode, passages_of, record
from rag_tuned_memory.store import open_store

async def main():
    one = episode("alice", "1", "disk full on orion")
    store = open_store(os.environ["STORE"])
    print("changed", await record(store, one))
    print("there", await store.passages("alice", one.id) == passages_of(one))
    await store.close()

anyio.run(main)
"""


def test_a_server_that_this_package_starts_keeps_what_was_recorded(binary: str, tmp_path: Path) -> None:
    version = "1.39.4"
    cache = tmp_path / "cache"
    cache.mkdir()
    # where the client looks for the binary before it would download one
    (cache / f"weaviate-v{version}-{hashlib.sha256(f'v{version}'.encode()).hexdigest()}").symlink_to(binary)
    rest, grpc = free_ports(2)  # the same at each start: the server's own name has its port in it
    for changed in (True, False):
        environment = os.environ | {
            "XDG_CACHE_HOME": str(cache),
            "STORE": f"weaviate+embedded://:{rest}{tmp_path}/data?version={version}&grpc={grpc}",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
            "DISK_USE_READONLY_PERCENTAGE": "0",
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert f"changed {changed}" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
        assert "there True" in done.stdout
