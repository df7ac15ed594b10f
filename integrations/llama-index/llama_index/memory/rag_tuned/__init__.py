"""llama-index on rag-tuned-memory.

Importing this package imports nothing else: each public name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index.memory.rag_tuned.query_engine import RagTunedQueryEngine
    from llama_index.memory.rag_tuned.retriever import RagTunedRetriever
    from llama_index.memory.rag_tuned.selector import RagTunedSelector

_HOMES = {
    "RagTunedQueryEngine": "query_engine",
    "RagTunedRetriever": "retriever",
    "RagTunedSelector": "selector",
}
"""The module of each public name."""

__all__ = ["RagTunedQueryEngine", "RagTunedRetriever", "RagTunedSelector"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
