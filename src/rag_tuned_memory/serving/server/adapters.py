"""Which adapters the server holds, and which of them a request means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rag_tuned_memory.errors import AdapterNotLoaded, InvalidInput
from rag_tuned_memory.serving.base import Fingerprint
from rag_tuned_memory.serving.local import LocalBackend
from rag_tuned_memory.serving.server.errors import validation

Unknown = Literal["refuse", "base"]
BASE_NAMES = frozenset({"tgi", "dummy"})
"""Model names of clients that name none: TGI's own, and what huggingface_hub sends when it knows an address only."""
BASE_ADAPTER = "__base_model__"
"""TGI's adapter_id of the base model."""
_ENTRY = re.compile(r"([^=@,]+)=([^=@,]+)")


@dataclass(frozen=True)
class Given:
    """An adapter to be served from the start; with a fingerprint it is proven."""

    name: str
    path: Path
    fingerprint: Fingerprint | None = None


def parse_adapters(text: str) -> list[Given]:
    """``name=/path,name=/path``, as in TGI's LORA_ADAPTERS; the last one of a name wins.

    Raises:
        InvalidInput: an entry is of another form. A bare name, which TGI would pull from the hub, is one.
    """
    found: dict[str, Given] = {}
    for entry in filter(None, text.split(",")):
        match = _ENTRY.fullmatch(entry)
        if match is None or entry != entry.strip() or match[1] != match[1].strip() or match[2] != match[2].strip():
            raise InvalidInput(
                f"{entry!r} is no adapter: it must be name=/path, without spaces around",
                place="LORA_ADAPTERS",
                remedy="Separate several by commas; neither name nor path may hold , = or @.",
            )
        found[match[1]] = Given(match[1], Path(match[2]))
    return list(found.values())


class Adapters:
    """The adapters in the backend, with the paths that they came from."""

    def __init__(self, backend: LocalBackend, base_id: str, unknown: Unknown = "refuse") -> None:
        self._backend, self._base_id, self._unknown = backend, base_id, unknown
        self._paths: dict[str, str] = {}

    @property
    def paths(self) -> dict[str, str]:
        """The path of each adapter that is served, in the order of loading."""
        return dict(self._paths)

    async def start(self, given: Sequence[Given]) -> None:
        """Load adapters. Raises what ``InferenceBackend.load_adapter`` raises."""
        for one in given:
            await self.load(one.name, str(one.path), one.fingerprint)

    async def load(self, name: str, path: str, fingerprint: Fingerprint | None = None) -> None:
        """Raises InvalidInput, AdapterDamaged or CanaryMismatch."""
        if name in BASE_NAMES | {BASE_ADAPTER, self._base_id}:
            raise InvalidInput(f"The lora adapter '{name}' conflicts with a served base model.")
        await self._backend.load_adapter(name, Path(path), fingerprint)
        self._paths[name] = path

    async def unload(self, name: str) -> None:
        """Refuses new requests for it at once, and waits for those that run. Raises AdapterNotLoaded."""
        if self._paths.pop(name, None) is None:
            raise AdapterNotLoaded(f"The lora adapter '{name}' cannot be found.")
        await self._backend.unload_adapter(name)

    def by_id(self, adapter_id: str | None) -> str | None:
        """The adapter of a native request's ``adapter_id``; None is the base model. Raises Refused."""
        if adapter_id in (None, BASE_ADAPTER) or adapter_id in self._paths:
            return None if adapter_id == BASE_ADAPTER else adapter_id
        if self._unknown == "base":
            return None
        held = ", ".join(self._paths) or "none"
        raise validation(f"unknown adapter {adapter_id!r} (loaded: {held})")

    def by_model(self, model: str | None) -> str | None:
        """The ``adapter_id`` that an OpenAI request's ``model`` means; None is the base model."""
        if model in self._paths:
            return model
        return None if model is None or model in BASE_NAMES | {self._base_id} else model
