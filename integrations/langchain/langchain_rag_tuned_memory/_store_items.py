"""An item of a LangGraph store as a trajectory, and back.

The value is kept exactly, as JSON in the trajectory's metadata. What is searched, recalled and learned is its text: an
observation whose actor is the item's path (``users/alice/prefs``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from langgraph.store.base import Item, get_text_at_path, tokenize_path
from pydantic import JsonValue

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.recall.prompt import strip_injected
from rag_tuned_memory.trajectory import Step, StepKind, Trajectory, canonical_json, trajectory_id

SOURCE = "langgraph-store"
"""The ``source`` of every item's trajectory."""

_NO_TEXT = " "
"""A trajectory has at least one step; one of white space is no passage, so that nothing is found by it."""
MOST_LEVELS = 90
"""Of mappings and lists in a value; a trajectory's metadata may have a few more."""
_BYTES_OF_A_CHARACTER = 6
"""At most, in JSON: ``\\u0000``."""

Address = tuple[tuple[str, ...], str]
"""An item's namespace (that of the LangGraph store) and key."""


def source_id(address: Address) -> str:
    """The item's id in its source, the same for the same address and no other.

    Raises:
        InvalidInput: the address is not valid UTF-8.
    """
    namespace, key = address
    try:
        return canonical_json([list(namespace), key]).decode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{error.object!r} is not valid UTF-8", place=f"item {address!r}") from None


def item_id(tenant: str, address: Address) -> str:
    """The id of the item's trajectory in the memory's namespace ``tenant``."""
    return trajectory_id(tenant, SOURCE, source_id(address))


def address_of(trajectory: Trajectory) -> Address:
    """Where the item that this trajectory is lies."""
    namespace, key = json.loads(trajectory.source_id or "")
    return tuple(namespace), key


def to_trajectory(
    tenant: str,
    address: Address,
    value: Mapping[str, JsonValue],
    index: Literal[False] | Sequence[str],
    *,
    created_at: datetime,
    updated_at: datetime,
    max_step_bytes: int,
) -> Trajectory:
    """The trajectory of an item. ``index`` names the paths whose text is searched; ``$`` is the whole value."""
    paths = index if index is not False else ()
    texts = [(path, text) for path in paths for text in _texts(value, path)]
    most = max_step_bytes // (2 * _BYTES_OF_A_CHARACTER)
    label = "/".join([*address[0], address[1]])[:most]
    steps = [
        Step(kind=StepKind.OBSERVATION, actor=label, ref=path[:most], text=_cut(text, most), started_at=updated_at)
        for path, text in texts
    ]
    return Trajectory(
        namespace=tenant,
        source=SOURCE,
        source_id=source_id(address),
        started_at=created_at,
        ended_at=updated_at,
        steps=tuple(steps) or (Step(kind=StepKind.OBSERVATION, text=_NO_TEXT),),
        metadata={"value": dict(value)},
    )


def to_item(trajectory: Trajectory) -> Item:
    """The item that this trajectory is."""
    namespace, key = address_of(trajectory)
    assert trajectory.started_at is not None
    assert trajectory.ended_at is not None
    return Item(
        value=value_of(trajectory),
        key=key,
        namespace=namespace,
        created_at=trajectory.started_at,
        updated_at=trajectory.ended_at,
    )


def value_of(trajectory: Trajectory) -> dict[str, Any]:
    """The item's value."""
    value = trajectory.metadata["value"]
    assert isinstance(value, dict)
    return value


def json_value(value: Any, place: str, levels: int = MOST_LEVELS) -> Any:
    """A copy of ``value`` that holds what JSON holds and nothing else; tuples become lists.

    Raises:
        InvalidInput: names the place of what JSON cannot hold (NaN, a date, a key that is no text), or of what is
            nested deeper than ``levels``.
    """
    if isinstance(value, Mapping | list | tuple) and levels == 0:
        raise InvalidInput(f"nested deeper than {MOST_LEVELS} levels", place=place, remedy="Flatten it.")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidInput(f"the key {key!r} is not text", place=place, remedy=_REMEDY)
        return {str(key): json_value(one, f"{place}.{key}", levels - 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(one, f"{place}[{number}]", levels - 1) for number, one in enumerate(value)]
    if not (value is None or isinstance(value, str | bool | int | float)):
        raise InvalidInput(f"JSON cannot hold a {type(value).__name__}", place=place, remedy=_REMEDY)
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise InvalidInput(f"JSON cannot hold this: {error}", place=place, remedy=_REMEDY) from None
    return value


_REMEDY = "Give a mapping of text to JSON values."


def _texts(value: Mapping[str, JsonValue], path: str) -> list[str]:
    """The texts at a path of the value that are not empty once recalled text is taken out."""
    if path == "$":
        found = [json.dumps(value, ensure_ascii=False)] if value else []
    else:
        found = get_text_at_path(value, tokenize_path(path))
    return [text for text in map(strip_injected, found) if text.strip()]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … (cut)"
