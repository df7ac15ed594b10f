"""The states of an adapter, and which may follow which.

    training → candidate → accepted → serving ⇄ retired
                        ↘ rejected

and any of them → tainted, from where nothing leads back.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from pydantic import AwareDatetime, BaseModel, ConfigDict

from rag_tuned_memory.errors import AdapterNotServable, IllegalTransition


class State(StrEnum):
    """What an adapter is now."""

    TRAINING = "training"
    """Before it is registered; no adapter in a registry is in this state."""
    CANDIDATE = "candidate"
    """Registered; the gate's decision is not yet put into force."""
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    SERVING = "serving"
    """Answers for its namespace; at most one does."""
    RETIRED = "retired"
    """Has served; a rollback lets it serve again."""
    TAINTED = "tainted"
    """Learned something that was to be forgotten; never serves again."""


TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.TRAINING: frozenset({State.CANDIDATE, State.TAINTED}),
        State.CANDIDATE: frozenset({State.ACCEPTED, State.REJECTED, State.TAINTED}),
        State.ACCEPTED: frozenset({State.SERVING, State.TAINTED}),
        State.REJECTED: frozenset({State.TAINTED}),
        State.SERVING: frozenset({State.RETIRED, State.TAINTED}),
        State.RETIRED: frozenset({State.SERVING, State.TAINTED}),
        State.TAINTED: frozenset({State.TAINTED}),
    }
)
"""From each state, the states that may follow. Tainting twice is legal: it logs a second reason."""

NEVER_SERVES = frozenset({State.REJECTED, State.TAINTED})


class Transition(BaseModel):
    """One line of an adapter's log. ``sequence`` orders the lines of all versions of a namespace.

    A line whose ``old`` and ``new`` are the same is a remark (tainting twice is one too).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int
    time: AwareDatetime
    old: State
    new: State
    reason: str
    actor: str
    """Who did it: user, host and process, or what the caller named."""
    manifest_sha256: str | None = None
    """In the first line only: the checksum of ``manifest.json``."""


def check_transition(name: str, old: State, new: State) -> None:
    """Return when ``new`` may follow ``old``.

    Raises:
        AdapterNotServable: a rejected or tainted adapter was to serve.
        IllegalTransition: any other step that the table does not hold.
    """
    if new in TRANSITIONS[old]:
        return
    if new is State.SERVING and old in NEVER_SERVES:
        raise AdapterNotServable(
            f"adapter {name} is {old} and never serves", remedy="Distil again, or promote another version."
        )
    allowed = ", ".join(sorted(TRANSITIONS[old])) or "nothing"
    raise IllegalTransition(
        f"adapter {name} is {old} and cannot become {new}", remedy=f"From {old} it may become: {allowed}."
    )
