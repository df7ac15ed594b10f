"""From a trajectory to the passages that are embedded and searched: one a step, several for a long step."""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from datetime import datetime

from rag_tuned_memory.store.base import Passage
from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory

HEADER_STEP = -1
"""The step number of the passage that says goal and outcome."""

CHUNK_PIECES = 180
"""A passage has at most so many pieces (words, signs): about 250 tokens, what the default embedder reads."""
OVERLAP_PIECES = 30
"""At most so many pieces of a part are repeated at the beginning of the next."""

_PIECE = re.compile(r"[^\W_]{1,16}|[^\w\s]|_")
_BOUNDARY = re.compile(r"(?<=[.!?;])\s+|\n+|(?<=[}\],])\s*(?=[\[{\"])")
"""Where a long text is split best: after sentences, at line ends, between the members of JSON."""

# strftime's month names depend on the locale
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def build_passages(trajectory: Trajectory) -> list[Passage]:
    """The passages of ``trajectory`` in reading order.

    One for each step; a step of more than ``CHUNK_PIECES`` pieces gives overlapping parts, cut at ends of sentences or
    members of JSON. A header passage (``HEADER_STEP``: goal and outcome) comes first where there is a goal. ``indexed``
    puts who spoke or which tool answered, and the date, before the text: ``Caroline (8 May 2023): …``. With MiniLM this
    form finds more than the date in front does.
    """
    passages = list(_header(trajectory))
    for number, step in enumerate(trajectory.steps):
        time = step.started_at or step.ended_at or trajectory.time
        label = _dated(speaker(step.kind, step.actor, step.tool), time)
        passages.extend(
            Passage(
                trajectory_id=trajectory.id,
                step=number,
                chunk=chunk,
                kind=step.kind,
                text=text,
                indexed=f"{label}: {text}",
                actor=step.actor,
                tool=step.tool,
                ref=step.ref,
                time=time,
            )
            for chunk, text in enumerate(split(step_text(step)))
        )
    return passages


def step_text(step: Step) -> str:
    """What a reader sees of a step: a call as ``tool(arguments)``, a failure with its error."""
    parts = [step.text]
    if step.kind is StepKind.TOOL_CALL or step.arguments:
        arguments = json.dumps(step.arguments, ensure_ascii=False) if step.arguments else ""
        parts.insert(0, f"{step.tool or 'arguments'}({arguments})")
    if step.error:
        parts.append(f"error: {step.error}")
    return "\n".join(part for part in parts if part.strip()) or (step.tool or "")


def speaker(kind: StepKind | None, actor: str | None, tool: str | None) -> str:
    """Who or what a passage comes from, in a word or two."""
    if kind is StepKind.TOOL_RESULT and tool:
        return f"{tool} result"
    return actor or tool or (kind.value.replace("_", " ") if kind else "episode")


def day(time: datetime) -> str:
    """``8 May 2023``."""
    return f"{time.day} {_MONTHS[time.month - 1]} {time.year}"


def outcome_text(outcome: Outcome) -> str:
    """``success, score 1.0, feedback: …``; empty where nothing is known."""
    parts = []
    if outcome.success is not None:
        parts.append("success" if outcome.success else "failure")
    if outcome.score is not None:
        parts.append(f"score {outcome.score:g}")
    if outcome.feedback:
        parts.append(f"feedback: {outcome.feedback}")
    return ", ".join(parts)


def _header(trajectory: Trajectory) -> Iterator[Passage]:
    if not trajectory.goal.strip():
        return
    ended = outcome_text(trajectory.outcome)
    body = f"Goal: {trajectory.goal}" + (f"\nOutcome: {ended}" if ended else "")
    label = _dated("episode", trajectory.time)
    for chunk, text in enumerate(split(body)):
        yield Passage(
            trajectory_id=trajectory.id,
            step=HEADER_STEP,
            chunk=chunk,
            kind=None,
            text=text,
            indexed=f"{label}: {text}",
            time=trajectory.time,
        )


def _dated(label: str, time: datetime | None) -> str:
    return f"{label} ({day(time)})" if time else label


def split(text: str, *, most: int = CHUNK_PIECES, overlap: int = OVERLAP_PIECES) -> list[str]:
    """``text`` itself, or overlapping parts of at most ``most`` pieces; parts are exact pieces of the text.

    Nothing is left out but white space between parts; a text of white space only gives no part.
    """
    return [part for begin, end in spans(text, most=most, overlap=overlap) if (part := text[begin:end].strip())]


def spans(text: str, *, most: int, overlap: int) -> list[tuple[int, int]]:
    """Where the parts of ``text`` begin and end; each begins at or before the end of the one before, or after space."""
    pieces = [match.span() for match in _PIECE.finditer(text)]
    if len(pieces) <= most:
        return [(0, len(text))]
    ends = _ends(text, pieces)
    found: list[tuple[int, int]] = []
    first, last = 0, 0
    while last < len(pieces):
        if found:
            first = _restart(ends, first, last, overlap)
        last = _last(ends, first, last, most, len(pieces))
        begin = pieces[first][0] if found else 0
        found.append((begin, pieces[last][0] if last < len(pieces) else len(text)))
    return found


def _ends(text: str, pieces: list[tuple[int, int]]) -> list[int]:
    """Numbers of pieces before which the text may be cut well, ascending."""
    boundaries = [match.end() for match in _BOUNDARY.finditer(text)]
    ends: list[int] = []
    piece = 0
    for boundary in boundaries:
        while piece < len(pieces) and pieces[piece][0] < boundary:
            piece += 1
        if 0 < piece < len(pieces) and (not ends or ends[-1] != piece):
            ends.append(piece)
    return ends


def _last(ends: list[int], first: int, before: int, most: int, total: int) -> int:
    """Where a part that begins with piece ``first`` ends: the last good place within reach, else where it is full.

    A good place lies in the second half of the part, and behind the end of the part ``before``.
    """
    full = first + most
    if full >= total:
        return total
    at = bisect_right(ends, full)
    return ends[at - 1] if at and ends[at - 1] > max(first + most // 2, before) else full


def _restart(ends: list[int], first: int, last: int, overlap: int) -> int:
    """Where the next part begins: the first good place among the last ``overlap`` pieces, else ``overlap`` back."""
    earliest = max(first + 1, last - overlap)
    at = bisect_left(ends, earliest)
    return ends[at] if at < len(ends) and ends[at] <= last else earliest
