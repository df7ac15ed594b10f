"""Which label of a choice takes which route, and which question is in a decision model's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from langchain_rag_tuned_memory._served_turns import last_question
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.routing.base import Route


def takers(criteria: Mapping[str, Any], place: str) -> dict[Route, str]:
    """The label that takes each route.

    A label takes the routes that its criteria name (``{"routes": ["tuned", "both"]}``), or the one whose name it is;
    one label without any takes what is left.

    Raises:
        InvalidInput: no such route, a route that two labels take, or one that none takes.
    """
    taken: dict[Route, str] = {}
    rest: list[str] = []
    for label, criterion in criteria.items():
        routes = _routes(label, criterion, f"{place}.criteria.{label}")
        if not routes:
            rest.append(label)
        for route in routes:
            if route in taken:
                raise InvalidInput(f"both {taken[route]!r} and {label!r} take the route {route.value!r}", place=place)
            taken[route] = label
    if len(rest) > 1:
        raise InvalidInput(
            f"only one label may take all other routes, not {', '.join(map(repr, rest))}",
            place=place,
            remedy='Say which each takes: criteria={"routes": ["tuned", "both"]}.',
        )
    left = [route for route in Route if route not in taken]
    if left and not rest:
        names = ", ".join(route.value for route in left)
        raise InvalidInput(f"no label takes the routes {names}", place=place, remedy="Add one without routes.")
    return taken | dict.fromkeys(left, rest[0])


def _routes(label: str, criterion: Any, place: str) -> list[Route]:
    named = criterion.get("routes") if isinstance(criterion, Mapping) else None
    if named is None:
        return [Route(label)] if label in set(Route) else []
    try:
        return [Route(name) for name in ([named] if isinstance(named, str) else named)]
    except (ValueError, TypeError):
        raise InvalidInput(
            f"no such routes: {named!r}", place=place, remedy=f"Allowed are {', '.join(Route)}."
        ) from None


def question_in(state: Any) -> str:
    """What is asked: text, the last human message of messages, or of ``messages`` in a mapping.

    Raises:
        InvalidInput: there is none.
    """
    if isinstance(state, str):
        return state
    if isinstance(state, BaseMessage):
        return last_question([state])
    if isinstance(state, Mapping):
        return question_in(state.get("messages"))
    if isinstance(state, Sequence) and all(isinstance(one, BaseMessage) for one in state):
        return last_question([one for one in state if isinstance(one, BaseMessage)])
    raise InvalidInput(
        f"there is no question in a state of type {type(state).__name__}",
        place="state",
        remedy="Give text, messages, or a mapping with messages.",
    )
