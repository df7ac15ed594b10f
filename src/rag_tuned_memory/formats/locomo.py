"""Imports conversations in LoCoMo's form (https://github.com/snap-research/LoCoMo, ``data/locomo10.json``).

Each session of a sample is one trajectory, each turn one message step whose ``ref`` is LoCoMo's ``dia_id``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rag_tuned_memory.errors import InvalidRecord, InvalidTrajectory
from rag_tuned_memory.formats.base import MAX_STEP_BYTES, Converted, ErrorPolicy, OnError, OnSkip, import_records
from rag_tuned_memory.formats.records import read_records
from rag_tuned_memory.trajectory import StepKind, Trajectory, validate_namespace

_SESSION = re.compile(r"session_(\d+)")
_DATE_TIME = re.compile(r"(\d{1,2}):(\d\d) ([ap]m) on (\d{1,2}) ([A-Za-z]+),? (\d{4})", re.IGNORECASE)
# Nine of the data set's evidence strings are malformed: "D8:6; D9:17", "D:11:26", "D".
_TURN = re.compile(r"D:?(\d+):(\d+)")
# strptime's month names depend on the locale.
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)


@dataclass(frozen=True, slots=True)
class LocomoQuestion:
    """One question about a sample.

    ``evidence`` are the ``dia_id`` of the turns that answer it. ``category``: 1 multi-hop, 2 temporal, 3 open-domain,
    4 single-hop, 5 adversarial (the conversation has no answer; most of these have ``answer`` None).
    """

    sample_id: str
    question: str
    answer: str | None
    category: int
    evidence: tuple[str, ...]


def read_locomo(
    path: Path,
    namespace: str | Callable[[str], str],
    *,
    on_error: OnError = "stop",
    on_skip: OnSkip | None = None,
    max_step_bytes: int = MAX_STEP_BYTES,
) -> Iterator[Trajectory]:
    """Each session of each sample of ``path`` as a trajectory; see ``Importer`` for the arguments.

    ``namespace`` may be a function of the sample's id, so that each conversation becomes a tenant of its own. Times
    are taken as UTC; a shared photo's caption is put behind the turn's text. Sessions without turns are left out. A
    bad session costs that session, and errors name the sample's line.
    """
    if not callable(namespace):
        validate_namespace(namespace)
    convert = partial(_sessions, namespace)
    return import_records(path, convert, ErrorPolicy(on_error, on_skip), max_step_bytes=max_step_bytes)


def read_locomo_questions(path: Path) -> dict[str, tuple[LocomoQuestion, ...]]:
    """The questions of each sample of ``path``, by sample id, in the file's order.

    Raises:
        InvalidRecord: a sample or question is not in LoCoMo's form.
    """
    questions: dict[str, tuple[LocomoQuestion, ...]] = {}
    for record in read_records(path):
        if record.error:
            raise record.error
        try:
            sample_id, _ = _sample(record.value)
            rows = record.value.get("qa") or []
            questions[sample_id] = tuple(_question(sample_id, row, f"qa.{index}") for index, row in enumerate(rows))
        except InvalidTrajectory as error:
            message = f"{error.place}: {error.message}" if error.place else error.message
            raise InvalidRecord(message, path=str(path), line=record.line) from error
    return questions


def is_locomo_record(record: Any) -> bool:
    """Whether a record has the form that this module reads."""
    return isinstance(record, Mapping) and isinstance(record.get("conversation"), Mapping)


def _sample(record: Any) -> tuple[str, Mapping[str, Any]]:
    if not is_locomo_record(record):
        raise InvalidTrajectory("not a LoCoMo sample: expected an object with 'conversation'")
    sample_id = record.get("sample_id")
    if not isinstance(sample_id, str) or not sample_id:
        raise InvalidTrajectory("must be text that is not empty", place="sample_id")
    return sample_id, record["conversation"]


def _sessions(namespace: str | Callable[[str], str], record: Any) -> Converted:
    sample_id, conversation = _sample(record)
    tenant = namespace(sample_id) if callable(namespace) else namespace
    numbers = sorted(int(found[1]) for key in conversation if (found := _SESSION.fullmatch(key)) and conversation[key])
    for number in numbers:
        try:
            yield _session(tenant, sample_id, number, conversation)
        except InvalidTrajectory as error:
            yield error


def _session(namespace: str, sample_id: str, number: int, conversation: Mapping[str, Any]) -> Trajectory:
    name = f"session_{number}"
    turns, place = conversation[name], f"{sample_id}.{name}"
    if not isinstance(turns, list):
        raise InvalidTrajectory("must be a list of turns", place=place)
    data = {
        "namespace": namespace,
        "source": "locomo",
        "source_id": f"{sample_id} session {number}",
        "started_at": _time(conversation.get(f"{name}_date_time"), f"{place}_date_time"),
        "steps": [_step(turn, f"{place}.{index}") for index, turn in enumerate(turns)],
        "metadata": {"sample_id": sample_id, "session": number},
    }
    return Trajectory.parse(data, place=place)


def _step(turn: Any, place: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise InvalidTrajectory("a turn must be an object", place=place)
    for key in ("speaker", "dia_id", "text"):
        if not isinstance(turn.get(key), str):
            raise InvalidTrajectory("must be text", place=f"{place}.{key}")
    caption = turn.get("blip_caption")
    text = f"{turn['text']} [shares a photo: {caption}]".lstrip() if caption else turn["text"]
    return {"kind": StepKind.MESSAGE, "actor": turn["speaker"], "ref": turn["dia_id"], "text": text}


def _time(value: Any, place: str) -> datetime | None:
    """``1:56 pm on 8 May, 2023`` as UTC; None where there is none."""
    if value is None:
        return None
    found = _DATE_TIME.fullmatch(value.strip()) if isinstance(value, str) else None
    try:
        if found:
            hour, minute, half, day, month, year = found.groups()
            clock = int(hour) % 12 + (12 if half.lower() == "pm" else 0)
            return datetime(int(year), _MONTHS.index(month.lower()) + 1, int(day), clock, int(minute), tzinfo=UTC)
    except ValueError:
        pass
    raise InvalidTrajectory(f"{value!r} is no time such as '1:56 pm on 8 May, 2023'", place=place)


def _question(sample_id: str, row: Any, place: str) -> LocomoQuestion:
    if not isinstance(row, Mapping) or not isinstance(row.get("question"), str):
        raise InvalidTrajectory("a question must be an object with 'question'", place=place)
    category, evidence = row.get("category"), row.get("evidence") or []
    if not isinstance(category, int):
        raise InvalidTrajectory("must be an integer", place=f"{place}.category")
    if not isinstance(evidence, list) or not all(isinstance(item, str) for item in evidence):
        raise InvalidTrajectory("must be a list of turn ids", place=f"{place}.evidence")
    turns = (f"D{int(session)}:{int(turn)}" for item in evidence for session, turn in _TURN.findall(item))
    answer = row.get("answer")
    return LocomoQuestion(
        sample_id=sample_id,
        question=row["question"],
        answer=None if answer is None else str(answer),
        category=category,
        evidence=tuple(dict.fromkeys(turns)),
    )
