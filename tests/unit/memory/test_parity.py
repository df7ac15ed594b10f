"""The blocking face has what the async core has, with the same arguments."""

from __future__ import annotations

import inspect

import pytest

from rag_tuned_memory.memory import AsyncMemory, AsyncWorkerHandle, Memory, WorkerHandle

LEFT_OUT = {"worker", "over"}
"""A worker that is run by hand needs an event loop; ``over`` is given what each is built on."""
ATTRIBUTES = {"namespace"}
"""An attribute of each async memory, a property of the blocking one."""
AWAITED = {f"a{name}" for name in dir(AsyncMemory)}
"""The blocking one's methods that are awaited instead."""


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("core", "face"), [(AsyncMemory, Memory), (AsyncWorkerHandle, WorkerHandle)])
def test_both_have_the_same_methods(core: type, face: type) -> None:
    assert public(core) - LEFT_OUT == public(face) - LEFT_OUT - ATTRIBUTES - AWAITED


@pytest.mark.parametrize(
    ("core", "face", "name"),
    [
        (core, face, name)
        for core, face in [(AsyncMemory, Memory), (AsyncWorkerHandle, WorkerHandle)]
        for name in sorted(public(face) | ({"__init__"} if face is Memory else set()))
        if callable(getattr(face, name)) and name not in LEFT_OUT
    ],
)
def test_both_take_the_same_arguments(core: type, face: type, name: str) -> None:
    asked = inspect.signature(getattr(core, name.removeprefix("a") if name in AWAITED else name)).parameters.values()
    answered = inspect.signature(getattr(face, name)).parameters.values()
    assert [(one.name, one.kind, one.default) for one in asked] == [
        (one.name, one.kind, one.default) for one in answered
    ]


@pytest.mark.parametrize("name", sorted(public(Memory)))
def test_only_what_begins_with_a_is_awaited(name: str) -> None:
    method = getattr(Memory, name)
    assert inspect.iscoroutinefunction(method) == (
        name in AWAITED and name.removeprefix("a") not in ("stream", "stream_generate", "export")
    )


def test_every_method_can_be_awaited_too() -> None:
    assert {name.removeprefix("a") for name in public(Memory) & AWAITED} == public(Memory) - AWAITED - {
        *("namespace", "settings", "registry", "close", "start_worker", "over")
    }
