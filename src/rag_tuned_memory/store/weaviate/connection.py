"""The client of one store: connected once, checked, with the collections made."""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import tenacity
import weaviate
from weaviate.classes.config import ConsistencyLevel
from weaviate.classes.init import AdditionalConfig, Auth, Timeout
from weaviate.collections import CollectionAsync
from weaviate.exceptions import UnexpectedStatusCodeError, WeaviateQueryError

from rag_tuned_memory.embedding.base import EmbedderIdentity
from rag_tuned_memory.errors import StoreTooOld, StoreUnavailable
from rag_tuned_memory.store.weaviate import schema
from rag_tuned_memory.store.weaviate.address import Address
from rag_tuned_memory.store.weaviate.failures import is_transient, translated
from rag_tuned_memory.store.weaviate.known import Known
from rag_tuned_memory.store.weaviate.names import embedder_digest, tenant

T = TypeVar("T")

OLDEST = (1, 36)
"""Server versions before this are not tried."""
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
_EMBEDDED = {
    "DISABLE_TELEMETRY": "true",
    "AUTOSCHEMA_ENABLED": "false",
    "GO_PROFILING_DISABLE": "true",
    "LOG_LEVEL": "error",
    # a node of one: without these it looks for an address of the machine, and does not start where there is none
    "CLUSTER_BIND_ADDR": "127.0.0.1",
    "CLUSTER_ADVERTISE_ADDR": "127.0.0.1",
    # it waits for no others, so it need not be patient; the client gives it 10 seconds to be ready
    "RAFT_TIMEOUTS_MULTIPLIER": "1",
}
"""What an embedded server is told unless the environment says otherwise."""

Objects = CollectionAsync[Any, Any]


class Connection:
    """A connected client. All methods run in the loop that the connection was opened in."""

    def __init__(self, address: Address, key: str | None) -> None:
        self.address = address
        self.place = str(address)
        self._key = key
        self._client: weaviate.WeaviateAsyncClient | None = None
        self._collections: set[str] = set()
        self._connecting = asyncio.Lock()
        self._level = ConsistencyLevel(address.consistency)
        self.known = Known()

    async def call(self, work: Callable[[], Awaitable[T]], *, times: float = 1) -> T:
        """The result of ``work``, which is tried again with growing, random pauses while the server is not there.

        It has ``times`` as long as the deadline, ``inf`` where it goes through all that is stored.

        Raises:
            StoreUnavailable: it did not succeed within the deadline.
            StoreFull, StoreError: it failed in another way.
        """
        last: Exception | None = None
        with translated(self.place):
            try:
                async with asyncio.timeout(None if times == math.inf else times * self.address.deadline):
                    async for attempt in self._attempts():
                        with attempt:
                            try:
                                await self._open()
                                return await work()
                            except Exception as error:
                                last = error
                                raise
            except TimeoutError as late:
                raise (last or late) from None  # what went wrong says more than that time ran out
        raise AssertionError("an attempt returns or raises")

    def _attempts(self) -> tenacity.AsyncRetrying:
        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=tenacity.wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT),
            stop=tenacity.stop_after_delay(self.address.deadline),
            reraise=True,
        )

    @property
    def client(self) -> weaviate.WeaviateAsyncClient:
        """The client, inside of ``call``."""
        assert self._client is not None
        return self._client

    def trajectories(self, namespace: str) -> Objects:
        """The raw records of a namespace."""
        return self._of(schema.TRAJECTORIES, namespace)

    def passages(self, collection: str, namespace: str) -> Objects:
        """The passages of a namespace in one of ``passage_collections``."""
        return (
            self.client.collections.use(collection).with_tenant(tenant(namespace)).with_consistency_level(self._level)
        )

    def values(self) -> Objects:
        """The small values of all namespaces."""
        return self.client.collections.use(self.name(schema.VALUES)).with_consistency_level(self._level)

    def name(self, kind: str) -> str:
        """A collection's name."""
        return f"{self.address.prefix}{kind}"

    def passage_collection(self, embedder: EmbedderIdentity) -> str:
        """The name of the collection with vectors of ``embedder``."""
        return f"{self.name(schema.PASSAGES)}_{embedder_digest(embedder)}"

    async def passage_collections(self) -> dict[str, EmbedderIdentity]:
        """The collections of passages that there are, and whose vectors they hold."""
        found = await self.client.collections.list_all(simple=True)
        begin = f"{self.name(schema.PASSAGES)}_"
        return {
            name: EmbedderIdentity.model_validate_json(config.description or "{}")
            for name, config in found.items()
            if name.startswith(begin)
        }

    async def ensure_passages(self, embedder: EmbedderIdentity) -> str:
        """Make the collection for vectors of ``embedder`` if it is not there; its name."""
        name = self.passage_collection(embedder)
        await self._ensure(name, schema.passages(self.address, embedder.model_dump_json()))
        return name

    async def close(self) -> None:
        """Close the client; closing twice is allowed."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _of(self, kind: str, namespace: str) -> Objects:
        found = self.client.collections.use(self.name(kind))
        return found.with_tenant(tenant(namespace)).with_consistency_level(self._level)

    async def _open(self) -> None:
        if self._client is not None:
            return
        async with self._connecting:
            if self._client is not None:
                return
            client = new_client(self.address, self._key)
            try:
                await client.connect()
                await self._check(client)
                self._client = client
                await self._ensure(self.name(schema.TRAJECTORIES), schema.trajectories(self.address))
                await self._ensure(self.name(schema.VALUES), schema.values(self.address))
                await self._try_grpc()
            except BaseException:
                self._client = None
                await client.close()
                raise

    async def _try_grpc(self) -> None:
        """REST answers; does gRPC?"""
        try:
            async with asyncio.timeout(self.address.deadline / 2):
                await self.values().query.fetch_objects(limit=1)
        except (TimeoutError, WeaviateQueryError) as error:
            if isinstance(error, TimeoutError) or is_transient(error):
                raise StoreUnavailable(
                    f"REST answers, gRPC on port {self.address.grpc_port} does not",
                    place=self.place,
                    remedy="Open the server's gRPC port (50051 unless set otherwise), and name it: ?grpc=50051.",
                ) from error
            raise

    async def _check(self, client: weaviate.WeaviateAsyncClient) -> None:
        version = str((await client.get_meta()).get("version", "0"))
        numbers = tuple(int(one) for one in re.findall(r"\d+", version)[:2])
        if numbers < OLDEST:
            raise StoreTooOld(
                f"the server is Weaviate {version}",
                place=self.place,
                remedy=f"Use {'.'.join(map(str, OLDEST))} or newer.",
            )
        if not await client.is_ready():
            raise StoreUnavailable("the server is not ready yet", place=self.place, remedy="Wait, or read its log.")

    async def _ensure(self, name: str, settings: dict[str, Any]) -> None:
        if name in self._collections:
            return
        if not await self.client.collections.exists(name):
            try:
                await self.client.collections.create(name, **settings)
            except UnexpectedStatusCodeError:
                if not await self.client.collections.exists(name):  # another process may have been first
                    raise
        self._collections.add(name)


def new_client(address: Address, key: str | None = None) -> weaviate.WeaviateAsyncClient:
    """A client of the server, not connected yet."""
    auth = Auth.api_key(key) if key else None
    timeout = Timeout(init=10, query=address.deadline, insert=address.deadline)
    config = AdditionalConfig(timeout=timeout)
    if address.folder is not None:
        return weaviate.use_async_with_embedded(
            port=address.port,
            grpc_port=address.grpc_port,
            version=address.version,
            persistence_data_path=address.folder,
            additional_config=config,
            environment_variables=_EMBEDDED | os.environ,
        )
    return weaviate.use_async_with_custom(
        http_host=address.host,
        http_port=address.port,
        http_secure=address.secure,
        grpc_host=address.grpc_host,
        grpc_port=address.grpc_port,
        grpc_secure=address.secure,
        auth_credentials=auth,
        additional_config=config,
        skip_init_checks=True,  # they ask pypi.org for the client's newest version
    )
