"""What every importer shares: how bad records are reported, and the checks that every trajectory must pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from rag_tuned_memory.errors import InvalidInput, InvalidRecord, InvalidTrajectory
from rag_tuned_memory.formats.records import Record, read_records
from rag_tuned_memory.settings import Settings
from rag_tuned_memory.trajectory import Trajectory, canonical_json

OnError = Literal["stop", "skip"]
OnSkip = Callable[[InvalidRecord], None]
MAX_STEP_BYTES: int = Settings.model_fields["max_step_bytes"].default
MAX_JSON_DEPTH = 100
"""Levels of lists and objects in arguments and metadata; JSON of twice as many can be written, but not read again."""


class Importer(Protocol):
    """Reads a file as a stream of trajectories of ``namespace``.

    A bad record raises InvalidRecord with its path and line (``on_error="stop"``), or is left out and handed to
    ``on_skip`` (``"skip"``). What cannot be skipped, such as a syntax error inside a JSON array, always raises. A step
    whose JSON has more than ``max_step_bytes`` UTF-8 bytes is an error of its record.
    """

    def __call__(
        self,
        path: Path,
        namespace: str,
        *,
        on_error: OnError = "stop",
        on_skip: OnSkip | None = None,
        max_step_bytes: int = MAX_STEP_BYTES,
    ) -> Iterator[Trajectory]: ...


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """What to do with a bad record."""

    on_error: OnError = "stop"
    on_skip: OnSkip | None = None

    def __post_init__(self) -> None:
        if self.on_error not in ("stop", "skip"):
            raise InvalidInput(f"on_error is {self.on_error!r}; allowed are 'stop' and 'skip'")

    def handle(self, error: InvalidRecord) -> None:
        """Raise ``error``, or report it and return."""
        if self.on_error == "stop":
            raise error
        if self.on_skip:
            self.on_skip(error)


Converted = Iterable[Trajectory | InvalidTrajectory]
"""What a record became. An error among them costs one trajectory; a raised one the rest of the record."""


def import_records(
    path: Path,
    convert: Callable[[Any], Converted],
    policy: ErrorPolicy,
    *,
    max_step_bytes: int,
    may_be_empty: bool = False,
) -> Iterator[Trajectory]:
    """The trajectories that ``convert`` makes of each record of ``path``, checked.

    Raises:
        InvalidRecord: see ``Importer``; also when the file holds no record and ``may_be_empty`` is False.
    """
    empty = True
    for record in read_records(path):
        empty = False
        for trajectory in _trajectories(path, record, convert, max_step_bytes):
            if isinstance(trajectory, InvalidRecord):
                policy.handle(trajectory)
            else:
                yield trajectory
    if empty and not may_be_empty:
        raise InvalidRecord("the file holds no records", path=str(path), remedy="Check that it is the right file.")


def _trajectories(
    path: Path, record: Record, convert: Callable[[Any], Converted], max_step_bytes: int
) -> Iterator[Trajectory | InvalidRecord]:
    if record.error:
        yield record.error
        return
    try:
        for item in convert(record.value):
            try:
                if isinstance(item, InvalidTrajectory):
                    raise item
                check_trajectory(item, max_step_bytes)
                yield item
            except InvalidTrajectory as error:
                yield _located(error, path, record.line)
    except InvalidTrajectory as error:
        yield _located(error, path, record.line)


def _located(error: InvalidTrajectory, path: Path, line: int) -> InvalidRecord:
    message = f"{error.place}: {error.message}" if error.place else error.message
    located = InvalidRecord(message, path=str(path), line=line, remedy=error.remedy)
    located.__cause__ = error
    return located


def check_trajectory(trajectory: Trajectory, max_step_bytes: int = MAX_STEP_BYTES) -> None:
    """Check what the trajectory's own types leave open.

    Raises:
        InvalidTrajectory: a step's JSON has more than ``max_step_bytes`` UTF-8 bytes, or arguments or metadata hold
            what JSON or UTF-8 cannot, or more than ``MAX_JSON_DEPTH`` levels; the message names the step.
    """
    for index, step in enumerate(trajectory.steps):
        size = _json_bytes(step.model_dump(mode="json", exclude_defaults=True), f"steps.{index}")
        if size > max_step_bytes:
            raise InvalidTrajectory(
                f"{size:,} bytes, at most {max_step_bytes:,} are allowed",
                place=f"steps.{index}",
                remedy="Split or shorten the step, or raise RTM_MAX_STEP_BYTES.",
            )
    _json_bytes(dict(trajectory.metadata), "metadata")


def _json_bytes(value: Any, place: str) -> int:
    try:
        size = len(canonical_json(value))
    except (ValueError, RecursionError) as error:
        raise InvalidTrajectory(f"cannot be written as UTF-8 JSON: {error}", place=place) from error
    if _is_deeper(value, MAX_JSON_DEPTH):
        raise InvalidTrajectory(f"nested deeper than {MAX_JSON_DEPTH} levels", place=place, remedy="Flatten it.")
    return size


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return any(isinstance(one, dict | list) for one in level)
