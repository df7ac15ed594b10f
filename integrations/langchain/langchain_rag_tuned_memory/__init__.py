"""LangChain and LangGraph on rag-tuned-memory.

Importing this package imports nothing else: each public name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_rag_tuned_memory.chat_history import RagTunedChatMessageHistory
    from langchain_rag_tuned_memory.chat_models import ChatRagTuned
    from langchain_rag_tuned_memory.decisions import RagTunedDecisionModel
    from langchain_rag_tuned_memory.demonstrations import RagTunedDemonstrations
    from langchain_rag_tuned_memory.documents import format_documents
    from langchain_rag_tuned_memory.memory import RagTunedMemory
    from langchain_rag_tuned_memory.middleware import RagTunedMemoryMiddleware
    from langchain_rag_tuned_memory.retrievers import RagTunedRetriever
    from langchain_rag_tuned_memory.stores import RagTunedStore
    from langchain_rag_tuned_memory.tools import memory_tools
    from langchain_rag_tuned_memory.tracing import TrajectoryRecorder

_HOMES = {
    "ChatRagTuned": "chat_models",
    "RagTunedChatMessageHistory": "chat_history",
    "RagTunedDecisionModel": "decisions",
    "RagTunedDemonstrations": "demonstrations",
    "RagTunedMemory": "memory",
    "RagTunedMemoryMiddleware": "middleware",
    "RagTunedRetriever": "retrievers",
    "RagTunedStore": "stores",
    "TrajectoryRecorder": "tracing",
    "format_documents": "documents",
    "memory_tools": "tools",
}
"""The module of each public name."""

__all__ = [
    "ChatRagTuned",
    "RagTunedChatMessageHistory",
    "RagTunedDecisionModel",
    "RagTunedDemonstrations",
    "RagTunedMemory",
    "RagTunedMemoryMiddleware",
    "RagTunedRetriever",
    "RagTunedStore",
    "TrajectoryRecorder",
    "__version__",
    "format_documents",
    "memory_tools",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("langchain-rag-tuned-memory")
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
