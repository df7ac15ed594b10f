"""Whose memory a call means."""

from __future__ import annotations

from collections.abc import Callable

from rag_tuned_memory import Memories, Memory
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace

MemoryLike = Memory | Memories
NamespaceLike = str | Callable[[], str | None] | None
"""A namespace, or what says it at each call (of a request's context, say)."""


class Binding:
    """A memory, found anew at each call where it is of many namespaces. There is no default namespace.

    Raises:
        InvalidInput: no memory; or ``Memories`` without a namespace.
        InvalidNamespace: the namespace is not the given ``Memory``'s own.
    """

    def __init__(self, memory: MemoryLike, namespace: NamespaceLike = None) -> None:
        if not isinstance(memory, Memory | Memories):
            raise InvalidInput(
                f"a Memory or Memories is needed, not {type(memory).__name__}",
                place="memory",
                remedy="Open one with rag_tuned_memory.Memory(namespace).",
            )
        if isinstance(memory, Memories) and namespace is None:
            raise InvalidInput(
                "Memories holds many namespaces, and nothing says which is meant",
                place="namespace",
                remedy="Give a namespace, or a callable that returns the one of the present call.",
            )
        self._memory = memory
        self._namespace = namespace
        if isinstance(memory, Memory) and isinstance(namespace, str):
            self._own(memory, namespace)

    @property
    def base_model(self) -> str:
        """The base model's name."""
        return self._memory.settings.model

    def __deepcopy__(self, memo: dict[int, object]) -> Binding:
        return self  # a copy of what uses a memory uses the same one

    def memory(self) -> Memory:
        """The memory of the present call. Raises InvalidNamespace where its namespace is missing, or not allowed."""
        named = self._namespace() if callable(self._namespace) else self._namespace
        if isinstance(self._memory, Memory):
            return self._memory if self._namespace is None else self._own(self._memory, named)
        if not named:
            raise _missing()
        return self._memory.of(named)

    @staticmethod
    def _own(memory: Memory, named: str | None) -> Memory:
        if not named:
            raise _missing()
        if named != memory.namespace:
            raise InvalidNamespace(
                f"the memory is bound to namespace {memory.namespace!r}, and {named!r} was asked for",
                place="namespace",
                remedy="Give Memories, which hold many namespaces.",
            )
        return memory


def _missing() -> InvalidNamespace:
    return InvalidNamespace(
        "nobody said whose memory this call is about",
        place="namespace",
        remedy="The callable given as namespace must return the namespace of each call.",
    )
