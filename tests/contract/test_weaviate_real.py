"""What only a server can show: crashes between two of its requests, removals beyond its limits, other processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from uuid import uuid4

import anyio
import numpy as np
import pytest
from store_helpers import EMBEDDER, episode, passages_of, record, record_many, vector, vectors

from rag_tuned_memory.embedding.base import EmbedderIdentity
from rag_tuned_memory.errors import StoreError, StoreUnavailable, TrajectoryNotFound
from rag_tuned_memory.store import Projection
from rag_tuned_memory.store.weaviate import WeaviateStore, known, parse_address
from weaviate_server import Server

pytestmark = pytest.mark.anyio

Open = Callable[[], WeaviateStore]
OTHER = EmbedderIdentity(model="other", revision="1", dimension=4)


@pytest.fixture
def prefix(weaviate: Server) -> Iterator[str]:
    name = f"RtmTest{uuid4().hex[:12]}"
    yield name
    weaviate.drop(name)


@pytest.fixture
async def opened(weaviate: Server, prefix: str) -> AsyncIterator[Open]:
    stores: list[WeaviateStore] = []

    def open_one() -> WeaviateStore:
        stores.append(WeaviateStore(parse_address(weaviate.url(prefix=prefix))))
        return stores[-1]

    yield open_one
    for one in stores:
        await one.close()


class Killed(Exception):
    """In place of a process that is gone."""


def die_at(monkeypatch: pytest.MonkeyPatch, request: int) -> None:
    """Let the ``request``-th writing request, counted from 0, and all after it never reach the server."""
    import weaviate.collections.data.executor as executor

    made = 0

    def wrapped(method: Any) -> Any:
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            if made > request:
                raise Killed
            return method(self, *arguments, **options)

        return call

    kind = executor._DataCollectionExecutor
    for name in ("insert_many", "delete_many", "delete_by_id", "update"):
        monkeypatch.setattr(kind, name, wrapped(getattr(kind, name)))


@pytest.mark.parametrize("request_", range(4))
async def test_a_process_killed_while_it_replaces_an_episode(
    opened: Open, monkeypatch: pytest.MonkeyPatch, request_: int
) -> None:
    old = episode("alice", "1", "disk full on orion", "restarted orion")
    new = episode("alice", "1", "disk full on vega", "replaced the disk", "closed")
    beside = episode("alice", "2", "disk full on lyra")
    first = opened()
    await record(first, old)
    await record(first, beside)
    with monkeypatch.context() as patch:
        die_at(patch, request_)
        dying = opened()
        try:
            await record(dying, new)
        except Killed:
            pass
        else:
            assert request_ == 3  # nothing was left to be killed in
    after = opened()
    seen = (await after.get("alice", "" + old.id)).trajectory
    assert seen in (old, new)
    assert await after.passages("alice", old.id) == passages_of(seen)
    found = await after.candidates("alice", "disk full", vector("disk full"), limit=10)
    assert {c.passage for c in found} == {*passages_of(seen), *passages_of(beside)}
    assert await after.mentions("alice", "orion") == (seen == old)
    problems = await after.check()
    assert all("rtm doctor --mend" in problem for problem in problems)
    assert bool(problems) is (request_ in (1, 2))
    await after.mend()
    assert await after.check() == []
    assert (await after.get("alice", old.id)).trajectory == seen
    assert await record(after, new) is (seen == old)
    assert await after.passages("alice", new.id) == passages_of(new)
    assert await after.check() == []


@pytest.mark.parametrize("request_", range(3))
async def test_a_process_killed_while_it_records_many(
    opened: Open, monkeypatch: pytest.MonkeyPatch, request_: int
) -> None:
    many = [episode("alice", str(number), "disk full", f"cleared {number}") for number in range(5)]
    beside = episode("alice", "beside", "all is well")
    await record(opened(), beside)
    with monkeypatch.context() as patch:
        die_at(patch, request_)
        dying = opened()
        try:
            await record_many(dying, many)
        except Killed:
            pass
        else:
            assert request_ == 2  # nothing was left to be killed in
    after = opened()
    stored = [one.trajectory async for one in after.scan("alice") if one.trajectory != beside]
    assert stored == (many if request_ == 2 else [])
    assert await after.mentions("alice", "disk") == len(stored)
    assert bool(await after.check()) is (request_ == 1)
    await after.mend()
    assert await after.check() == []
    assert await record_many(after, many) == [one not in stored for one in many]
    for one in many:
        assert await after.passages("alice", one.id) == passages_of(one)


async def test_many_recorded_while_some_are_forgotten_are_each_there_or_gone(opened: Open) -> None:
    many = [episode("alice", str(n), *(f"step {i}" for i in range(12))) for n in range(6)]
    writer, remover = opened(), opened()
    for _ in range(6):
        await remover.delete("alice", [one.id for one in many])
        async with anyio.create_task_group() as group:
            group.start_soon(record_many, writer, many)
            group.start_soon(remover.delete, "alice", [one.id for one in many[::2]])
        for one in many:
            try:
                stored = await remover.get("alice", one.id)
            except TrajectoryNotFound:
                assert await remover.passages("alice", one.id) == []
                assert one in many[::2]
            else:
                assert await remover.passages("alice", one.id) == passages_of(stored.trajectory)
    assert await remover.check() == []


@pytest.mark.parametrize("request_", range(2))
async def test_a_process_killed_while_it_forgets(opened: Open, monkeypatch: pytest.MonkeyPatch, request_: int) -> None:
    one, other = episode("alice", "1", "the secret is tulip"), episode("alice", "2", "disk full")
    first = opened()
    await record(first, one)
    await record(first, other)
    with monkeypatch.context() as patch:
        die_at(patch, request_)
        with pytest.raises(Killed):
            await opened().delete("alice", [one.id])
    after = opened()
    # the record stays until all is gone: whoever asked can see that it was not done, and asks again
    assert (await after.get("alice", one.id)).trajectory == one
    assert bool(await after.check()) is (request_ == 1)
    assert await after.delete("alice", [one.id]) == [one.id]
    with pytest.raises(TrajectoryNotFound):
        await after.get("alice", one.id)
    assert await after.mentions("alice", "tulip") == 0
    assert await after.mentions("alice", "disk") == 1
    assert await after.check() == []


async def test_a_reader_that_knew_the_old_version_soon_sees_what_a_killed_process_wrote(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = episode("alice", "1", "disk full on orion"), episode("alice", "1", "disk full on vega")
    reader = opened()
    await record(reader, old)

    async def seen(text: str) -> list[str]:
        return [c.passage.text for c in await reader.candidates("alice", text, vector(text), limit=1)]

    assert await seen("disk full on orion") == ["disk full on orion"]
    with monkeypatch.context() as patch:
        die_at(patch, 2)  # the new record is written, the old passages are not yet removed
        with pytest.raises(Killed):
            await record(opened(), new)
    assert await seen("disk full on vega") == ["disk full on vega"]
    monkeypatch.setattr(known, "SECONDS", 0.0)
    reader._connection.known.forget("alice")  # as after five minutes
    assert await seen("disk full on orion") == ["disk full on vega"]


@pytest.mark.slow
async def test_25_000_passages_are_forgotten_at_once_and_siblings_stay(opened: Open) -> None:
    store = opened()
    kept = [episode("alice", "kept", "disk full"), episode("alice-smith", "1", "disk full")]
    for one in kept:
        await record(store, one)
    texts = [f"step {number}" for number in range(12_500)]
    made = np.tile(vector("x"), (len(texts), 1))
    large = [episode("alice", f"large {i}", *texts) for i in range(2)]
    for one in large:
        await store.put(one, passages_of(one), made, EMBEDDER)
    assert (await store.stats("alice")).passages == 25_001
    assert await store.passages("alice", large[0].id) == passages_of(large[0])
    assert await store.delete("alice", [one.id for one in large]) == [one.id for one in large]
    assert (await store.stats("alice")).passages == 1
    for one in kept:
        assert await store.passages(one.namespace, one.id) == passages_of(one)
    for one in large:
        assert await store.passages("alice", one.id) == []
    assert await store.check() == []


async def test_two_processes_that_write_the_same_episode_leave_one_of_both_whole(opened: Open) -> None:
    stores = [opened() for _ in range(3)]
    versions = [episode("alice", "1", *(f"version {v} step {i}" for i in range(v + 2))) for v in range(3)]
    async with anyio.create_task_group() as group:
        for store, version in zip(stores, versions, strict=True):
            group.start_soon(record, store, version)
    seen = (await stores[0].get("alice", versions[0].id)).trajectory
    assert seen in versions
    assert await stores[1].passages("alice", seen.id) == passages_of(seen)
    await stores[0].mend()
    assert await stores[2].check() == []


async def test_what_is_recorded_while_it_is_forgotten_is_there_or_gone_but_never_in_part(opened: Open) -> None:
    one = episode("alice", "1", *(f"step {i}" for i in range(30)))
    writer, remover = opened(), opened()
    for round_ in range(8):
        await record(writer, one)
        async with anyio.create_task_group() as group:
            group.start_soon(remover.delete, "alice", [one.id])
            group.start_soon(record, writer, one.model_copy(update={"goal": f"round {round_}"}))
        try:
            stored = await remover.get("alice", one.id)
        except TrajectoryNotFound:
            assert await remover.passages("alice", one.id) == []
            assert await remover.mentions("alice", "step") == 0
        else:
            assert await remover.passages("alice", one.id) == passages_of(stored.trajectory)
    assert await remover.check() == []


async def test_another_embedders_vectors_take_over_and_the_old_ones_stay_until_told(opened: Open) -> None:
    store = opened()
    one = episode("a", "1", "red fox", "blue sky")
    await record(store, one)
    made = np.array([vector(p.indexed, OTHER.dimension) for p in passages_of(one)], dtype=np.float32)
    projection = Projection(one.id, one.content_hash, passages_of(one), made)
    assert await store.rebuild("a", [projection], OTHER) == []
    same = Projection(one.id, one.content_hash, passages_of(one), vectors([p.indexed for p in passages_of(one)]))
    assert await store.rebuild("a", [same], EMBEDDER) == []
    assert await store.embedder("a") == EMBEDDER
    assert await store.drop_unused("a") == [OTHER]
    assert await store.drop_unused("a") == []
    assert await store.delete("a", [one.id]) == [one.id]
    assert await store.check() == []


async def test_vectors_of_every_embedder_are_forgotten(opened: Open) -> None:
    store = opened()
    one = episode("a", "1", "the secret is tulip")
    await record(store, one)
    made = np.array([vector("x", OTHER.dimension)], dtype=np.float32)
    await store.rebuild("a", [Projection(one.id, one.content_hash, passages_of(one), made)], OTHER)
    await store.delete("a", [one.id])
    back = episode("a", "2", "nothing")
    await store.put(back, passages_of(back), made, OTHER)
    await store.rebuild(
        "a", [Projection(back.id, back.content_hash, passages_of(back), vectors(["nothing"]))], EMBEDDER
    )
    found = await store.candidates("a", "tulip", vector("the secret is tulip"), limit=10)
    assert [c.passage.text for c in found] == ["nothing"]


@pytest.mark.parametrize("index", ["hnsw", "hnsw-rq", "flat", "flat-rq"])
async def test_each_index_finds(weaviate: Server, prefix: str, index: str) -> None:
    store = WeaviateStore(parse_address(weaviate.url(prefix=prefix, index=index)))
    await record(store, episode("alice", "1", "disk full", "other words"))
    found = await store.candidates("alice", "other", vector("disk full"), limit=2)
    assert [c.passage.text for c in found] == ["disk full", "other words"]
    assert found[0].dense == pytest.approx(1, abs=1e-6)
    await store.close()


async def test_a_dynamic_index_needs_asynchronous_indexing(weaviate: Server, prefix: str) -> None:
    store = WeaviateStore(parse_address(weaviate.url(prefix=prefix, index="dynamic")))
    with pytest.raises(StoreError, match="ASYNC_INDEXING=true"):
        await record(store, episode("alice", "1", "disk full"))
    await store.close()


async def test_nothing_listens(prefix: str) -> None:
    store = WeaviateStore(parse_address(f"weaviate://127.0.0.1:9?grpc=10&deadline=1&prefix={prefix}"))
    with pytest.raises(StoreUnavailable, match="check host"):
        await store.namespaces()
    await store.close()


async def test_rest_answers_and_grpc_does_not(weaviate: Server, prefix: str) -> None:
    closed = weaviate.url(prefix=prefix, deadline=3).replace(f"grpc={weaviate.grpc}", "grpc=9")
    store = WeaviateStore(parse_address(closed))
    with pytest.raises(StoreError, match="gRPC"):
        await store.namespaces()
    await store.close()
