"""The HTTP API of one vLLM server, as far as it is needed here, with its refusals as our errors."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import anyio

from rag_tuned_memory.errors import (
    AdapterDamaged,
    AdapterError,
    BackendError,
    BackendUnavailable,
    InvalidInput,
    RagTunedMemoryError,
)
from rag_tuned_memory.serving.compatibility.vllm import rank_problems
from rag_tuned_memory.serving.endpoint import Endpoint, Names, public, refusal
from rag_tuned_memory.serving.health import Health
from rag_tuned_memory.serving.vllm.files import AdapterFiles

HEALTH_SECONDS = 5.0
_LIMIT = re.compile(r"max_lora_rank (\d+)")


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server says that it serves."""

    bases: tuple[str, ...]
    """Names of the base model."""
    context: int | None
    """Most tokens of prompt and answer together."""
    adapters: Mapping[str, str]
    """Path by name."""


class VllmServer:
    """One server. ``endpoint`` has the client for completions, and what bounds and translates a call."""

    def __init__(self, url: str, key: str | None, *, timeout: float, max_retries: int) -> None:
        public(url)
        self.root = url.rstrip("/").removesuffix("/v1")
        names = Names(place="vLLM", key="api_key", model="model")
        self.endpoint = Endpoint(
            f"{self.root}/v1", key, model=None, extra="vllm", timeout=timeout, max_retries=max_retries, names=names
        )

    @property
    def place(self) -> str:
        """For error messages."""
        return self.endpoint.place

    async def listing(self) -> Listing:
        """What it serves now. Raises BackendError."""

        async def ask() -> Listing:
            cards = [card.model_dump() for card in (await self.endpoint.client.models.list()).data]
            bases = [card for card in cards if not card.get("parent")]
            return Listing(
                tuple(card["id"] for card in bases),
                next((card["max_model_len"] for card in bases if card.get("max_model_len")), None),
                {card["id"]: str(card["root"]) for card in cards if card.get("parent")},
            )

        return await self.endpoint.call(ask)

    async def load(self, name: str, path: str, files: AdapterFiles) -> None:
        """Load an adapter from where the server sees it; what it has by this name from there is left as it is.

        Raises:
            InvalidInput: it has another adapter by this name.
            AdapterDamaged: it finds no adapter there.
            AdapterError: it does not take this one.
            BackendUnavailable, BackendError: see ``Endpoint.call``; also when it loads no adapters while it runs.
        """
        if await self._has(name, path):
            return
        try:
            await self._post("/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except BackendError as error:
            status, _ = refusal(error)
            if status == 400 and await self._has(name, path):  # another process was quicker
                return
            raise await self._refused(error, name, path, files) from error

    async def unload(self, name: str) -> None:
        """Unload an adapter; it is no error that the server does not have it. Raises BackendError."""
        try:
            await self._post("/unload_lora_adapter", {"lora_name": name})
        except BackendError as error:
            if refusal(error)[0] != 404:
                raise

    async def health(self, *, seconds: float = HEALTH_SECONDS) -> Health:
        """What it finds within ``seconds``; raises nothing."""
        began = time.monotonic()
        client = self.endpoint.client.with_options(max_retries=0)
        state, detail = "ready", "it answers"
        try:
            await self.endpoint.call(lambda: client.get(f"{self.root}/health", cast_to=str), seconds=seconds)
        except RagTunedMemoryError as error:
            detail = str(error)
            hung = isinstance(error.__cause__, TimeoutError) or "timed out" in str(error.__cause__).lower()
            refused = isinstance(error, BackendUnavailable) and not refusal(error)[0]
            state = "hung" if hung else "refused" if refused else "unhealthy"
        return Health(state, detail, time.monotonic() - began)  # type: ignore[arg-type]

    async def _has(self, name: str, path: str) -> bool:
        """Whether it has this adapter from this path. Raises InvalidInput where the name is another's."""
        listing = await self.listing()
        if name in listing.bases:
            raise InvalidInput(f"{name!r} is the base model's name on the server", place=self.place)
        found = listing.adapters.get(name)
        if found is not None and found != path:
            raise InvalidInput(
                f"the server has another adapter by the name {name!r}, from {found} instead of {path}",
                place=self.place,
                remedy="Adapter names are never used twice: load a new version's name, or unload it there.",
            )
        return found is not None

    async def _post(self, route: str, body: dict[str, str]) -> None:
        client = self.endpoint.client.with_options(max_retries=0)
        await self.endpoint.call(lambda: client.post(route, body=body, cast_to=str))

    async def _refused(
        self, error: BackendError, name: str, path: str, files: AdapterFiles
    ) -> AdapterError | BackendError:
        status, said = refusal(error)
        if status == 404 and "adapter" not in said:
            return BackendError(
                "the server loads no adapters while it runs",
                place=self.place,
                remedy="Start it with --enable-lora and the environment variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, "
                "or with --lora-modules NAME=PATH.",
            )
        if status == 404:
            return AdapterDamaged(
                f"the server finds no adapter in {path}",
                place=self.place,
                remedy="It must see the same folder: mount it there, and say by adapters_root where that is.",
            )
        if status not in (400, 422, 500) or (status == 500 and not (await self.health()).ready):
            return error
        if limit := _LIMIT.search(said):
            for problem in rank_problems(files.rank, int(limit[1])):
                return AdapterError(problem.sentence, place=self.place, remedy=problem.remedy)
        return AdapterError(f"the server does not take {name!r}: {said}", place=self.place)


async def quietly_unload(server: VllmServer, name: str) -> None:
    """Unload what failed its proof, also when the task is being cancelled; the server may be gone by now."""
    with anyio.move_on_after(HEALTH_SECONDS, shield=True):
        try:
            await server.unload(name)
        except BackendError:
            return
