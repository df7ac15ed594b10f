"""Which episode a state is in: one turn, from a human message until the agent's answer.

The episode's key is made when the turn begins and kept in the state, so that a run that is resumed, replayed or
summarised, in this process or another, stays in the same episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

STATE_KEY = "rag_tuned_memory"
"""The private key of the agent's state."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a conversation. ``first`` and ``last`` are ids of the human messages that began it, if any."""

    source_id: str
    first: str | None
    last: str | None
    started_at: str

    def to_state(self) -> dict[str, Any]:
        """JSON for the agent's state."""
        return asdict(self)

    @property
    def start(self) -> datetime:
        """When it began."""
        return datetime.fromisoformat(self.started_at)


def begun(state: Mapping[str, Any], thread: str | None) -> Turn:
    """The turn that begins with the human messages that the state ends with; ``thread`` names the conversation."""
    messages: Sequence[BaseMessage] = state.get("messages") or ()
    earlier = _stored(state)
    fresh = _last_humans(messages, earlier.last if earlier else None)
    if not fresh and earlier and earlier.last is not None:
        return earlier  # the same message once more: a run that is tried again
    last = fresh[-1].id if fresh else None
    return Turn(
        source_id=f"{thread or uuid4()}/{last or uuid4()}",
        first=fresh[0].id if fresh else None,
        last=last,
        started_at=datetime.now(UTC).isoformat(),
    )


def present(state: Mapping[str, Any], thread: str | None) -> tuple[Turn, list[BaseMessage]]:
    """The turn that the state is in, with its messages.

    Also where its beginning was not seen, because another middleware jumped over it.
    """
    messages: Sequence[BaseMessage] = state.get("messages") or ()
    stored = _stored(state)
    if stored:
        own = messages_of(stored, messages)
        if not _answered_and_asked_again(own):
            return stored, own
    humans = _last_humans(messages, stored.last if stored else None)
    last = humans[-1].id if humans else None
    turn = Turn(
        source_id=f"{thread or 'run'}/{last or 'unasked'}",
        first=humans[0].id if humans else None,
        last=last,
        started_at=datetime.now(UTC).isoformat(),
    )
    return turn, messages_of(turn, messages)


def messages_of(turn: Turn, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Those that belong to the turn: from its first human message on, without what a summary put in their place."""
    for place, message in enumerate(messages):
        if message.id is not None and message.id == turn.first:
            return list(messages[place:])
    place = _after_last_answer(messages) if turn.first is None else 0
    return [one for one in messages[place:] if not is_summary(one)]


def is_summary(message: BaseMessage) -> bool:
    """Whether a summary of earlier messages stands in their place."""
    return isinstance(message, HumanMessage) and message.additional_kwargs.get("lc_source") == "summarization"


def _stored(state: Mapping[str, Any]) -> Turn | None:
    kept = state.get(STATE_KEY)
    try:
        return Turn(**kept) if isinstance(kept, Mapping) else None
    except TypeError:  # of another version
        return None


def _last_humans(messages: Sequence[BaseMessage], known: str | None) -> list[BaseMessage]:
    """The human messages after all else, without those up to the one that began an earlier turn."""
    found: list[BaseMessage] = []
    for message in reversed(messages):
        if not isinstance(message, HumanMessage) or is_summary(message):
            break
        if known is not None and message.id == known:
            break
        found.append(message)
    return found[::-1] or _last_human(messages, known)


def _last_human(messages: Sequence[BaseMessage], known: str | None) -> list[BaseMessage]:
    asked = (one for one in reversed(messages) if isinstance(one, HumanMessage) and not is_summary(one))
    last = next(asked, None)
    return [] if last is None or (known is not None and last.id == known) else [last]


def last_human(messages: Sequence[BaseMessage]) -> int:
    """The place of the last human message, -1 where there is none."""
    for place in range(len(messages) - 1, -1, -1):
        if isinstance(messages[place], HumanMessage):
            return place
    return -1


def _answered_and_asked_again(messages: Sequence[BaseMessage]) -> bool:
    """Whether a human message follows an answer, which is where another turn begins."""
    asked = max(last_human(messages), 0)
    return any(isinstance(one, AIMessage) and not one.tool_calls for one in messages[:asked])


def _after_last_answer(messages: Sequence[BaseMessage]) -> int:
    places = [place for place, one in enumerate(messages) if isinstance(one, AIMessage) and not one.tool_calls]
    return places[-1] if places else 0
