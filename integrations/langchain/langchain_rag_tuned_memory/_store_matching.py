"""Which items and namespaces an operation of a LangGraph store means: prefixes, wildcards, filters.

The rules are those of LangGraph's own stores; where these differ, those of ``InMemoryStore``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import eq, ge, gt, le, lt, ne
from typing import Any

from langgraph.store.base import MatchCondition

from rag_tuned_memory.errors import InvalidInput

_ORDERS: dict[str, Callable[[float, float], bool]] = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}
_EQUALS: dict[str, Callable[[Any, Any], bool]] = {"$eq": eq, "$ne": ne}


def in_prefix(namespace: tuple[str, ...], prefix: tuple[str, ...]) -> bool:
    """Whether a namespace begins with ``prefix``, label by label."""
    return namespace[: len(prefix)] == tuple(prefix)


def in_condition(namespace: tuple[str, ...], condition: MatchCondition) -> bool:
    """Whether a namespace begins or ends as the condition says; ``*`` stands for any one label."""
    path = tuple(condition.path)
    if len(namespace) < len(path):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for label, wanted in zip(part, path, strict=True))


def check_filter(given: Mapping[str, Any] | None) -> None:
    """Raises InvalidInput where an operator is not one of the store's."""
    for field, wanted in (given or {}).items():
        _check(wanted, f"filter.{field}")


def passes(value: Mapping[str, Any], given: Mapping[str, Any] | None) -> bool:
    """Whether an item's value meets every condition; a field that is not there is None."""
    return all(_meets(value.get(field), wanted) for field, wanted in (given or {}).items())


def _check(wanted: Any, place: str) -> None:
    if not isinstance(wanted, Mapping):
        return
    for name, one in wanted.items():
        if _is_operation(wanted) and name not in _ORDERS and name not in _EQUALS:
            known = ", ".join(sorted([*_ORDERS, *_EQUALS]))
            raise InvalidInput(f"Unsupported operator: {name}", place=place, remedy=f"Use one of {known}.")
        _check(one, f"{place}.{name}")


def _is_operation(wanted: Mapping[str, Any]) -> bool:
    return any(isinstance(name, str) and name.startswith("$") for name in wanted)


def _meets(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if _is_operation(wanted):
            return all(_operation(found, name, one) for name, one in wanted.items())
        return isinstance(found, Mapping) and all(_meets(found.get(name), one) for name, one in wanted.items())
    if isinstance(wanted, list | tuple):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(_meets(one, other) for one, other in zip(found, wanted, strict=True))
        )
    return bool(found == wanted)


def _operation(found: Any, name: str, wanted: Any) -> bool:
    if name in _EQUALS:
        return _EQUALS[name](found, wanted)
    try:
        return _ORDERS[name](float(found), float(wanted))
    except (TypeError, ValueError):  # nothing orders a text or a list against a number
        return False
