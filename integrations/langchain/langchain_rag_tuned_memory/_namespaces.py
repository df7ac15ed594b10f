"""Whose memory a call is about, for components that are called with a runnable config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config

from rag_tuned_memory.errors import InvalidNamespace
from rag_tuned_memory.memory import Memories, Memory
from rag_tuned_memory.trajectory import validate_namespace

CONFIG_KEY = "namespace"
"""Where a namespace stands in a runnable config: ``config["configurable"]["namespace"]``, or in a run's context."""
_RUNTIME = "__pregel_runtime"
"""Where LangGraph keeps the runtime of a node in its config."""


def asked_namespace(given: str | None, config: RunnableConfig | None) -> str | None:
    """The namespace that a call names: the one given, else what ``config`` or the surrounding run says."""
    if given is not None:
        return given
    configurable = ensure_config(config).get("configurable", {})
    return named_by_run(configurable.get(_RUNTIME), configurable)


def named_by_run(runtime: Any, configurable: Mapping[str, Any], key: str = CONFIG_KEY) -> str | None:
    """Whose memory a run uses: what its context says, else the server's authenticated user, else its configuration.

    Context and configuration may come from a client, so where a server has authenticated somebody, they cannot name
    another one.

    Raises:
        InvalidNamespace: they do, or what is named cannot be a namespace.
    """
    in_context = _member(getattr(runtime, "context", None), key)
    given, place = (configurable.get(key), "configurable") if in_context is None else (in_context, "context")
    named = None if given is None else namespace_text(given, f"{place}[{key!r}]")
    user = getattr(getattr(runtime, "server_info", None), "user", None)
    if user is None:
        return named
    identity = namespace_text(_member(user, "identity"), "server user")
    if named not in (None, identity):
        raise InvalidNamespace(
            f"the server's user is {identity!r}, but the run names {named!r}",
            place=key,
            remedy="Leave it out, or give namespace=, and decide yourself who may use whose memory.",
        )
    return identity


def _member(owner: Any, name: str) -> Any:
    """An item of a mapping or an attribute of anything else; None where there is none."""
    return owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)


def namespace_text(value: Any, place: str) -> str:
    """``value`` as a namespace, numbers and UUIDs too. Raises InvalidNamespace."""
    if isinstance(value, int | UUID) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InvalidNamespace(f"must be text, is {value!r}", place=place, remedy="Name the tenant, e.g. 'alice'.")
    return validate_namespace(value)


def with_namespace(
    memory: Memory | Memories, own: str | None, config: RunnableConfig | None, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """A call's arguments with the namespace in them: further down the config is not known any more."""
    if not isinstance(memory, Memories):
        return kwargs
    given = kwargs.get("namespace")
    return {**kwargs, "namespace": asked_namespace(own if given is None else given, config)}


def memory_of(memory: Memory | Memories, namespace: str | None) -> Memory:
    """The memory of ``namespace``; of many memories none is ever chosen unasked.

    Raises:
        InvalidNamespace: many memories and no namespace, a bad one, or another one than ``memory`` is bound to.
    """
    if isinstance(memory, Memories):
        if namespace is None:
            raise InvalidNamespace(
                "this component holds the memories of many namespaces, and the call names none",
                remedy="Give namespace=… when making it or with the call,"
                f' or config={{"configurable": {{"{CONFIG_KEY}": …}}}}.',
            )
        return memory.of(namespace)
    if namespace not in (None, memory.namespace):
        raise InvalidNamespace(
            f"the memory is bound to namespace {memory.namespace!r}, and {namespace!r} was asked for",
            remedy="Use Memories where several namespaces are served.",
        )
    return memory
