"""Agent memory that retrieves and learns.

    from rag_tuned_memory import Memory

    with Memory("operations") as memory:
        memory.record({"goal": "…", "steps": [{"kind": "message", "text": "…"}]})
        memory.recall("what happened?")

Importing this package imports nothing else: each public name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag_tuned_memory.capture import EpisodeRecorder
    from rag_tuned_memory.distil.policy import DistilPolicy
    from rag_tuned_memory.distil.recipe import Recipe
    from rag_tuned_memory.errors import RagTunedMemoryError
    from rag_tuned_memory.learning.events import DistilReport
    from rag_tuned_memory.memory import AsyncMemory, ForgetReceipt, Memories, Memory, MemoryStats, RecordReceipt
    from rag_tuned_memory.recall.recollection import Recollection
    from rag_tuned_memory.routing.base import Answer, Decision, Route, Routing
    from rag_tuned_memory.settings import Settings
    from rag_tuned_memory.store.base import Filter
    from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory

_HOMES = {
    "Answer": "routing.base",
    "AsyncMemory": "memory",
    "Decision": "routing.base",
    "DistilPolicy": "distil.policy",
    "DistilReport": "learning.events",
    "EpisodeRecorder": "capture",
    "Filter": "store.base",
    "ForgetReceipt": "memory",
    "Memories": "memory",
    "Memory": "memory",
    "MemoryStats": "memory",
    "Outcome": "trajectory",
    "RagTunedMemoryError": "errors",
    "Recipe": "distil.recipe",
    "Recollection": "recall.recollection",
    "RecordReceipt": "memory",
    "Route": "routing.base",
    "Routing": "routing.base",
    "Settings": "settings",
    "Step": "trajectory",
    "StepKind": "trajectory",
    "Trajectory": "trajectory",
}
"""The module of each public name."""

__all__ = [
    "Answer",
    "AsyncMemory",
    "Decision",
    "DistilPolicy",
    "DistilReport",
    "EpisodeRecorder",
    "Filter",
    "ForgetReceipt",
    "Memories",
    "Memory",
    "MemoryStats",
    "Outcome",
    "RagTunedMemoryError",
    "Recipe",
    "Recollection",
    "RecordReceipt",
    "Route",
    "Routing",
    "Settings",
    "Step",
    "StepKind",
    "Trajectory",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("rag-tuned-memory")
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
