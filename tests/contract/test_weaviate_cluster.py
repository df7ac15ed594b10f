"""Three nodes, three replicas, QUORUM: one node is killed, and nothing that was acknowledged is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import anyio
import pytest
from store_helpers import episode, passages_of, record, vector

from rag_tuned_memory.store.weaviate import WeaviateStore, parse_address
from weaviate_server import HOW, Server, cluster

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

EPISODES = 60


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    if shutil.which("weaviate") is None:
        pytest.skip(HOW)
    with cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


def opened(node: Server) -> WeaviateStore:
    return WeaviateStore(parse_address(node.url(replicas=3, consistency="QUORUM", deadline=60)))


async def test_a_node_is_killed_while_it_is_written_to_and_searched(nodes: list[Server]) -> None:
    episodes = [episode("alice", str(i), f"incident {i}", f"cause {i}", f"fix {i}") for i in range(EPISODES)]
    writing, reading = opened(nodes[0]), opened(nodes[1])
    acknowledged = []
    killed = anyio.Event()

    async def write() -> None:
        for one in episodes:
            await record(writing, one)
            acknowledged.append(one)
            if len(acknowledged) == EPISODES // 3:
                assert nodes[2].process is not None
                nodes[2].process.kill()
                killed.set()

    async def search() -> None:
        await killed.wait()
        while len(acknowledged) < EPISODES:
            known = list(acknowledged)
            one = known[len(known) // 2]
            text = one.steps[0].text
            found = await reading.candidates("alice", text, vector(text), limit=5)
            assert passages_of(one)[0] in [c.passage for c in found]

    async with anyio.create_task_group() as group:
        group.start_soon(write)
        group.start_soon(search)
    assert acknowledged == episodes
    for store in (reading, writing):
        assert [stored.trajectory async for stored in store.scan("alice")] == episodes
        for one in episodes:
            assert await store.passages("alice", one.id) == passages_of(one)
        assert await store.check() == []
        await store.close()
