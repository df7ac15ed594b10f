"""LangChain and LangGraph on rag-tuned-memory.

Importing this package imports nothing else: each public name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_rag_tuned_memory.middleware import RagTunedMemoryMiddleware
    from langchain_rag_tuned_memory.tools import memory_tools

_HOMES = {
    "RagTunedMemoryMiddleware": "middleware",
    "memory_tools": "tools",
}
"""The module of each public name."""

__all__ = [
    "RagTunedMemoryMiddleware",
    "memory_tools",
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
