"""Whose memory a run uses. There is no default: a run that does not say so is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from langgraph.config import get_config

from langchain_rag_tuned_memory._namespaces import CONFIG_KEY, memory_of
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
            return self._bound(_text(self._namespace(runtime), "namespace"))
        return self._bound(self._found(runtime, _present_config() if config is None else config))

    def _bound(self, namespace: str) -> Memory:
        return memory_of(self._memory, validate_namespace(namespace))

    def _found(self, runtime: Any, config: Mapping[str, Any]) -> str:
        in_context = _member(getattr(runtime, "context", None), self._key)
        in_config = (config.get("configurable") or {}).get(self._key)
        given = in_config if in_context is None else in_context
        user = getattr(getattr(runtime, "server_info", None), "user", None)
        if user is not None:
            return self._authenticated(user, given)
        if given is not None:
            place = f"configurable[{self._key!r}]" if in_context is None else f"context[{self._key!r}]"
            return _text(given, place)
        raise InvalidNamespace(
            "this run does not say whose memory it uses",
            remedy=f"Invoke the agent with context={{{self._key!r}: …}}, or with it in config['configurable']; or give"
            " namespace= (text, or a callable that is given the runtime), or a Memory instead of Memories.",
        )

    def _authenticated(self, user: Any, given: Any) -> str:
        identity = _text(_member(user, "identity"), "server user")
        if given is not None and _text(given, self._key) != identity:
            raise InvalidNamespace(
                f"the server's user is {identity!r}, but the run names {given!r}",
                place=self._key,
                remedy="Leave it out, or give namespace=, a callable that decides who may use whose memory.",
            )
        return identity


def _member(owner: Any, name: str) -> Any:
    """An item of a mapping or an attribute of anything else; None where there is none."""
    return owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)


def _text(value: Any, place: str) -> str:
    if isinstance(value, int | UUID) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InvalidNamespace(f"must be text, is {value!r}", place=place, remedy="Name the tenant, e.g. 'alice'.")
    return validate_namespace(value)


def _present_config() -> Mapping[str, Any]:
    try:
        return get_config()
    except RuntimeError:  # outside of a run
        return {}
