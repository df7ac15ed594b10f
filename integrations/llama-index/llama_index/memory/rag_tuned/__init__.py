"""llama-index on rag-tuned-memory: agents that remember, recall and learn.

Importing this package imports nothing else: each public name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index.memory.rag_tuned.base import RagTunedMemory
    from llama_index.memory.rag_tuned.block import RagTunedMemoryBlock
    from llama_index.memory.rag_tuned.llm import RagTunedLLM
    from llama_index.memory.rag_tuned.query_engine import RagTunedQueryEngine
    from llama_index.memory.rag_tuned.recorder import TrajectoryRecorder
    from llama_index.memory.rag_tuned.retriever import RagTunedRetriever
    from llama_index.memory.rag_tuned.selector import RagTunedSelector
    from llama_index.memory.rag_tuned.stream import RecordedRun

_HOMES = {
    "RagTunedLLM": "llm",
    "RagTunedMemory": "base",
    "RagTunedMemoryBlock": "block",
    "RagTunedQueryEngine": "query_engine",
    "RagTunedRetriever": "retriever",
    "RagTunedSelector": "selector",
    "RecordedRun": "stream",
    "TrajectoryRecorder": "recorder",
}
"""The module of each public name."""

__all__ = [
    "RagTunedLLM",
    "RagTunedMemory",
    "RagTunedMemoryBlock",
    "RagTunedQueryEngine",
    "RagTunedRetriever",
    "RagTunedSelector",
    "RecordedRun",
    "TrajectoryRecorder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
