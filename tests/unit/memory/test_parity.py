"""The blocking face has what the async core has, with the same arguments."""

from __future__ import annotations

import inspect

import pytest

from rag_tuned_memory.memory import AsyncMemory, AsyncWorkerHandle, Memory, WorkerHandle

LEFT_OUT = {"worker"}
"""A worker that is run by hand needs an event loop."""
ATTRIBUTES = {"namespace"}
"""An attribute of each async memory, a property of the blocking one."""


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("core", "face"), [(AsyncMemory, Memory), (AsyncWorkerHandle, WorkerHandle)])
def test_both_have_the_same_methods(core: type, face: type) -> None:
    assert public(core) - LEFT_OUT == public(face) - ATTRIBUTES


@pytest.mark.parametrize(
    ("core", "face", "name"),
    [
        (core, face, name)
        for core, face in [(AsyncMemory, Memory), (AsyncWorkerHandle, WorkerHandle)]
        for name in sorted(public(face) | ({"__init__"} if face is Memory else set()))
        if callable(getattr(face, name))
    ],
)
def test_both_take_the_same_arguments(core: type, face: type, name: str) -> None:
    asked = inspect.signature(getattr(core, name)).parameters.values()
    answered = inspect.signature(getattr(face, name)).parameters.values()
    assert [(one.name, one.kind, one.default) for one in asked] == [
        (one.name, one.kind, one.default) for one in answered
    ]


@pytest.mark.parametrize("name", sorted(public(Memory)))
def test_only_the_core_is_async(name: str) -> None:
    assert not inspect.iscoroutinefunction(getattr(Memory, name))
    assert not inspect.isasyncgenfunction(getattr(Memory, name))
