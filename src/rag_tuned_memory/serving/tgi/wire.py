"""The parts of TGI's answers that are read, as they are on the wire."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from rag_tuned_memory.serving.tgi.failures import meaning, protocol_error


class _Wire(BaseModel):
    # Strict: a number in quotes is another server's answer, not this one's.
    model_config = ConfigDict(frozen=True, strict=True)


class WireToken(_Wire):
    """A token of an answer or, in ``prefill``, of its prompt."""

    id: int
    text: str
    logprob: float | None = None
    """None where the server computed NaN, and for a prompt's first token."""
    special: bool = False

    @property
    def known_logprob(self) -> float:
        """The log-probability; NaN where the server gives none."""
        return math.nan if self.logprob is None else self.logprob


class Details(_Wire):
    """How an answer ended. Streams tell ``input_length`` (tokens of the prompt), the others ``prefill``."""

    finish_reason: str
    input_length: int | None = None
    prefill: tuple[WireToken, ...] = ()


class Event(_Wire):
    """One event of a stream: one token. The last has ``generated_text``, and ``details`` where they were asked for."""

    token: WireToken
    generated_text: str | None = None
    details: Details | None = None

    @property
    def last(self) -> bool:
        """Whether the answer ends here."""
        return self.generated_text is not None or self.details is not None


class Whole(_Wire):
    """An answer in one piece."""

    generated_text: str
    details: Details


class Told(_Wire):
    """An error, in a body or in an event."""

    error: Any
    error_type: str = ""


_WHOLE = TypeAdapter(Whole | tuple[Whole])


def read_event(data: bytes, place: str) -> Event:
    """The event in ``data``. Raises the error that it tells, or BackendError for what is none of TGI's events."""
    try:
        return Event.model_validate_json(data)
    except ValidationError as error:
        try:
            told = Told.model_validate_json(data)
        except ValidationError:
            raise protocol_error(f"an event like {_beginning(data)}", place) from error
        raise meaning(told.error_type, str(told.error), place) from None


def read_whole(data: bytes, place: str) -> Whole:
    """The answer in ``data``, by itself or, from ``/``, as the only one of a list. Raises BackendError."""
    try:
        found = _WHOLE.validate_json(data)
    except ValidationError as error:
        raise protocol_error(f"an answer like {_beginning(data)}", place) from error
    return found[0] if isinstance(found, tuple) else found


def _beginning(data: bytes) -> str:
    return repr(data[:100].decode(errors="replace"))
