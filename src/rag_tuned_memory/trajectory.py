"""What an agent did: trajectories, their steps and their outcome.

A trajectory is one episode: a goal, the steps taken in order (messages, thoughts, tool calls and results,
observations, feedback) and how it ended. The models are frozen, reject unknown fields, and are stable as JSON: the
same trajectory always has the same id and the same content hash, on every machine.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from rag_tuned_memory.errors import InvalidNamespace, InvalidTrajectory

MAX_NAMESPACE_CHARACTERS = 256
_ID_SPACE = uuid.UUID("5f1c3f0e-7f2b-5d55-9f0e-7d8a3f0b6a11")


def validate_namespace(value: str) -> str:
    """Return ``value`` if it can name a tenant, else raise InvalidNamespace.

    Any text of 1 to 256 characters without control characters or lone surrogates is a namespace; names are compared
    character by character (``alice`` and ``ALICE`` are two tenants, and nothing is a wildcard).
    """
    if not isinstance(value, str) or not value.strip():
        raise InvalidNamespace("a namespace must be non-empty text", remedy="Name the tenant, e.g. 'alice'.")
    if len(value) > MAX_NAMESPACE_CHARACTERS:
        raise InvalidNamespace(f"a namespace has at most {MAX_NAMESPACE_CHARACTERS} characters, this one {len(value)}")
    bad = next((c for c in value if unicodedata.category(c) in ("Cc", "Cs")), None)
    if bad is not None:
        raise InvalidNamespace(f"a namespace cannot hold the character U+{ord(bad):04X}")
    return value


def _aware(value: Any) -> Any:
    """Take a time without a zone as UTC, so that stored times can always be compared."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return value
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


def _utf8(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text is not valid UTF-8 at character {error.start}") from None
    return value


Namespace = Annotated[str, AfterValidator(validate_namespace)]
Time = Annotated[AwareDatetime, BeforeValidator(_aware)]
Text = Annotated[str, AfterValidator(_utf8)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StepKind(StrEnum):
    """What a step is."""

    MESSAGE = "message"
    THOUGHT = "thought"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"
    OBSERVATION = "observation"
    FEEDBACK = "feedback"


class Step(_Model):
    """One thing that happened.

    ``actor`` is who spoke or acted (a chat role such as ``user``, or a name). ``tool``, ``arguments`` and ``call_id``
    belong to tool calls and results; a result's ``call_id`` is its call's. ``ref`` is the source's own id of the step
    (a message id, LoCoMo's ``D1:3``). ``error`` is set when the step failed.
    """

    kind: StepKind
    text: Text = ""
    actor: Text | None = None
    tool: Text | None = None
    arguments: dict[str, JsonValue] | None = None
    call_id: Text | None = None
    ref: Text | None = None
    started_at: Time | None = None
    ended_at: Time | None = None
    error: Text | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if not (self.text or self.tool or self.arguments or self.error):
            raise ValueError("a step needs text, a tool, arguments or an error")
        if self.kind is StepKind.TOOL_CALL and not self.tool:
            raise ValueError("a tool_call step needs 'tool'")
        return self


class Outcome(_Model):
    """How an episode ended. ``score`` is on the source's own scale; ``feedback`` is what people said of it."""

    success: bool | None = None
    score: float | None = None
    feedback: Text | None = None


class Trajectory(_Model):
    """One episode of an agent.

    ``source`` names where it came from (``tau-bench``, ``locomo``, ``langchain``); ``source_id`` is its id there. The
    ``id`` is derived: uuid5 of namespace and source id, or of the content where there is no source id, so that
    recording the same episode twice is recording it once.
    """

    namespace: Namespace
    steps: tuple[Step, ...] = Field(min_length=1)
    goal: Text = ""
    outcome: Outcome = Outcome()
    started_at: Time | None = None
    ended_at: Time | None = None
    source: Text = "rag-tuned-memory"
    source_id: Text | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    id: str = ""

    @model_validator(mode="after")
    def _derive_id(self) -> Self:
        derived = trajectory_id(self.namespace, self.source, self.source_id or self.content_hash)
        if self.id and self.id != derived:
            raise ValueError(f"id {self.id} is not the id of this trajectory ({derived}); leave it out")
        object.__setattr__(self, "id", derived)
        return self

    @property
    def content_hash(self) -> str:
        """SHA-256 of the canonical JSON of everything but ``id`` and ``namespace``."""
        content = self.model_dump(mode="json", exclude={"id", "namespace"}, exclude_defaults=True)
        return hashlib.sha256(canonical_json(content)).hexdigest()

    @property
    def time(self) -> datetime | None:
        """When the episode began, as well as is known: its own start, its end, or its first dated step."""
        own = self.started_at or self.ended_at
        return own or next((step.started_at for step in self.steps if step.started_at), None)

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, place: str | None = None) -> Self:
        """Build from plain data.

        Raises:
            InvalidTrajectory: naming the field (``steps.3.kind``), what is allowed there, and ``place``.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InvalidTrajectory(describe(error), place=place) from error


def trajectory_id(namespace: str, source: str, source_id: str) -> str:
    """The deterministic id of a trajectory.

    The parts are encoded as a JSON list, so that no two different triples can give the same text.
    """
    return str(uuid.uuid5(_ID_SPACE, canonical_json([namespace, source, source_id]).decode()))


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def describe(error: ValidationError) -> str:
    """One line for a pydantic error: the first three fields at fault, each with what is wrong there."""
    found = error.errors(include_url=False, include_input=False)
    # where an item is bad, pydantic also counts the list too short
    inside = {one["loc"][:depth] for one in found for depth in range(len(one["loc"]))}
    details = [one for one in found if one["type"] != "too_short" or one["loc"] not in inside]
    lines = [f"{'.'.join(map(str, e['loc'])) or 'record'}: {e['msg']}" for e in details[:3]]
    more = f" (and {len(details) - 3} more)" if len(details) > 3 else ""
    return "; ".join(lines) + more
