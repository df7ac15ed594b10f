"""Whose memory a call is about, for components that are called with a runnable config."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config

from rag_tuned_memory.errors import InvalidNamespace
from rag_tuned_memory.memory import Memories, Memory

CONFIG_KEY = "namespace"
"""Where a namespace stands in a runnable config: ``config["configurable"]["namespace"]``."""


def asked_namespace(given: str | None, config: RunnableConfig | None) -> str | None:
    """The namespace that a call names: the one given, else the one of ``config`` or of the surrounding run's."""
    if given is not None:
        return given
    found = ensure_config(config).get("configurable", {}).get(CONFIG_KEY)
    return None if found is None else str(found)


def with_namespace(
    memory: Memory | Memories, own: str | None, config: RunnableConfig | None, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """A call's arguments with the namespace in them: further down the config is not known any more."""
    if not isinstance(memory, Memories):
        return kwargs
    return {**kwargs, "namespace": asked_namespace(kwargs.get("namespace") or own, config)}


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
