"""Whose memory a run uses. There is no default: a run that does not say so is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langgraph.config import get_config

from langchain_rag_tuned_memory._namespaces import CONFIG_KEY, memory_of, named_by_run, namespace_text
from rag_tuned_memory import Memories, Memory
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace
from rag_tuned_memory.trajectory import validate_namespace

NamespaceOf = Callable[[Any], str]
"""Given the ``Runtime`` (in a tool: the ``ToolRuntime``) of a run, says whose memory it uses."""


class Identity:
    """Finds the memory of a run.

    ``namespace`` decides where it is given, as text or as a callable. Else a ``Memory`` is its own namespace, and for
    ``Memories`` it is looked for under ``key``: in the run's context (``context={"namespace": …}``, also as attribute),
    then the authenticated user of the server, then ``config["configurable"]``. Context and configuration may come from
    a client, so where a server has authenticated somebody, they cannot name another one.

    Raises:
        InvalidInput: ``memory`` is no memory.
        InvalidNamespace: ``namespace`` cannot be one, or is not the one that ``memory`` is bound to.
    """

    def __init__(
        self, memory: Memory | Memories, namespace: str | NamespaceOf | None = None, *, key: str = CONFIG_KEY
    ) -> None:
        if not isinstance(memory, Memory | Memories):
            raise InvalidInput(
                f"a Memory or Memories is needed, not {type(memory).__name__}",
                place="memory",
                remedy="Write Memory('name') for one namespace, Memories() for many.",
            )
        self._memory = memory
        self._namespace = namespace
        self._key = key
        if isinstance(namespace, str):
            self._bound(namespace)
        elif namespace is not None and not callable(namespace):
            raise InvalidInput(f"must be text or a callable, is {namespace!r}", place="namespace")

    def memory(self, runtime: Any, config: Mapping[str, Any] | None = None) -> Memory:
        """The memory of the run whose ``Runtime`` or ``ToolRuntime`` this is; ``config`` is the present one by default.

        Raises:
            InvalidNamespace: nobody is named, or what is named cannot be a namespace.
        """
        if self._namespace is None and isinstance(self._memory, Memory):
            return self._memory
        if isinstance(self._namespace, str):
            return self._bound(self._namespace)
        if self._namespace is not None:
            return self._bound(namespace_text(self._namespace(runtime), "namespace"))
        return self._bound(self._found(runtime, _present_config() if config is None else config))

    def _bound(self, namespace: str) -> Memory:
        return memory_of(self._memory, validate_namespace(namespace))

    def _found(self, runtime: Any, config: Mapping[str, Any]) -> str:
        named = named_by_run(runtime, config.get("configurable") or {}, self._key)
        if named is None:
            raise InvalidNamespace(
                "this run does not say whose memory it uses",
                remedy=f"Invoke the agent with context={{{self._key!r}: …}}, or with it in config['configurable']; or"
                " give namespace= (text, or a callable that is given the runtime), or a Memory instead of Memories.",
            )
        return named


def _present_config() -> Mapping[str, Any]:
    try:
        return get_config()
    except RuntimeError:  # outside of a run
        return {}
