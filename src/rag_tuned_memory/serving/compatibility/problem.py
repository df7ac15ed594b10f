"""One reason why a server cannot serve an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias, get_args

from rag_tuned_memory.settings import ServerKind

Server: TypeAlias = ServerKind
SERVERS: Final[tuple[Server, ...]] = get_args(Server)
NAMES: Final[dict[Server, str]] = {"tgi": "TGI", "vllm": "vLLM"}


@dataclass(frozen=True, slots=True)
class Problem:
    """What stands in the way, as a sentence without its full stop, and what to change."""

    sentence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.sentence}. {self.remedy}"
