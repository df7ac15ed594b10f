"""What becomes of calls when the server fails: against a double, because a real one cannot be asked to."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
from store_helpers import episode, passages_of, record, vector

from rag_tuned_memory.errors import StoreError, StoreFull, StoreTooOld, StoreUnavailable
from rag_tuned_memory.store.weaviate import WeaviateStore, parse_address
from weaviate_double import Double, broken, losing, refusing, serving, slow, unavailable

pytestmark = pytest.mark.anyio

ONE = episode("alice", "1", "disk full", "freed space", "closed")


@pytest.fixture
def double() -> Iterator[Double]:
    with serving(Double()) as one:
        yield one


@pytest.fixture
async def store(double: Double) -> AsyncIterator[WeaviateStore]:
    one = WeaviateStore(parse_address(double.url(deadline=8)))
    yield one
    await one.close()


async def whole(store: WeaviateStore) -> bool:
    """Whether the episode is there with all its passages."""
    there = (await store.get("alice", ONE.id)).trajectory == ONE
    return there and await store.passages("alice", ONE.id) == passages_of(ONE)


async def test_without_a_fault_it_is_written_and_found(store: WeaviateStore) -> None:
    assert await record(store, ONE) is True
    assert await whole(store)
    found = await store.candidates("alice", "disk", vector("disk full"), limit=1)
    assert found[0].passage == passages_of(ONE)[0]


async def test_objects_that_the_server_did_not_take_for_now_are_sent_again(
    store: WeaviateStore, double: Double
) -> None:
    await store.set_meta("alice", "warm", "up")
    double.fail_next("BatchObjects", None, refusing(0, 2, reason="shard is not ready: leader not found"))
    assert await record(store, ONE) is True
    assert await whole(store)


async def test_objects_that_it_never_takes_are_named_and_nothing_is_left(store: WeaviateStore, double: Double) -> None:
    await store.set_meta("alice", "warm", "up")
    double.fail_next("BatchObjects", None, refusing(1, reason="vector lengths don't match"))
    with pytest.raises(StoreError, match=r"1 objects were not written \(step 1 of trajectory .*lengths"):
        await record(store, ONE)
    assert await store.headings("alice", [ONE.id]) == {}
    assert not any(place for (name, _), place in double.objects.items() if "Passages" in name)


async def test_a_full_disk_says_so(store: WeaviateStore, double: Double) -> None:
    await store.set_meta("alice", "warm", "up")
    double.fail_next("BatchObjects", None, refusing(0, 1, 2, reason="store is read-only"))
    with pytest.raises(StoreFull, match="DISK_USE_READONLY_PERCENTAGE"):
        await record(store, ONE)


async def test_what_was_acknowledged_and_not_kept_is_written_again(store: WeaviateStore, double: Double) -> None:
    await store.set_meta("alice", "warm", "up")
    double.fail_next("BatchObjects", None, losing(double, 1))
    assert await record(store, ONE) is True
    assert await whole(store)


async def test_a_server_that_is_gone_for_a_moment_is_waited_for(store: WeaviateStore, double: Double) -> None:
    await record(store, ONE)
    double.fail_next("Search", unavailable)
    assert await whole(store)


async def test_a_server_that_stays_away_is_reported_within_the_deadline(double: Double) -> None:
    store = WeaviateStore(parse_address(double.url(deadline=2)))
    await record(store, ONE)
    double.fail_next("Search", *[unavailable] * 100)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.get("alice", ONE.id)
    assert time.monotonic() - began < 4
    await store.close()


async def test_a_server_that_does_not_answer_is_given_up_within_the_deadline(double: Double) -> None:
    store = WeaviateStore(parse_address(double.url(deadline=1)))
    await record(store, ONE)
    double.fail_next("Search", *[slow(5)] * 3)
    with pytest.raises(StoreUnavailable):
        await store.get("alice", ONE.id)
    await store.close()


async def test_what_cannot_be_mended_by_trying_again_is_raised_at_once(store: WeaviateStore, double: Double) -> None:
    await record(store, ONE)
    before = double.requests["Search"]
    double.fail_next("Search", broken)
    with pytest.raises(StoreError, match="something is broken"):
        await store.get("alice", ONE.id)
    assert double.requests["Search"] == before + 1


async def test_the_event_loop_is_never_blocked(store: WeaviateStore, double: Double) -> None:
    await record(store, ONE)
    double.fail_next("Search", slow(0.5))
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await anyio.sleep(0.01)
            ticks += 1

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await store.get("alice", ONE.id)
        group.cancel_scope.cancel()
    assert ticks > 20


async def test_a_reader_that_is_cancelled_leaves_at_once(store: WeaviateStore, double: Double) -> None:
    await record(store, ONE)
    double.fail_next("Search", slow(2))
    began = time.monotonic()
    with anyio.move_on_after(0.1):
        await store.get("alice", ONE.id)
    assert time.monotonic() - began < 1


async def test_an_old_server_is_refused_with_the_version_that_helps() -> None:
    with serving(Double(version="1.31.0")) as double:
        store = WeaviateStore(parse_address(double.url(deadline=2)))
        with pytest.raises(StoreTooOld, match=r"1\.31\.0.*1\.36 or newer"):
            await store.namespaces()
        await store.close()


async def test_a_server_that_is_not_ready_is_waited_for_and_then_reported() -> None:
    with serving(Double(ready=False)) as double:
        store = WeaviateStore(parse_address(double.url(deadline=2)))
        with pytest.raises(StoreUnavailable, match="not ready"):
            await store.get("alice", ONE.id)
        await store.close()


def test_one_store_serves_several_event_loops(double: Double) -> None:
    store = WeaviateStore(parse_address(double.url()))
    for backend in ("asyncio", "trio"):
        anyio.run(record, store, ONE, backend=backend)
        assert anyio.run(whole, store, backend=backend)
    anyio.run(store.close)
