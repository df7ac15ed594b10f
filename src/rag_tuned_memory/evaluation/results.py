"""What an experiment with arms found: one row for each question and arm, and the figures that follow from the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from rag_tuned_memory.distil.evaluation import QuestionKind
from rag_tuned_memory.errors import InvalidInput, InvalidRecord
from rag_tuned_memory.evaluation.questions import KINDS
from rag_tuned_memory.trajectory import describe

Arm = Literal["none", "full_context", "retrieval", "tuned", "both", "routed"]
ARMS: Final[tuple[Arm, ...]] = get_args(Arm)

ROWS_FILE = "rows.jsonl"
ABOUT_FILE = "about.json"


class ArmRow(BaseModel):
    """One question in one arm.

    ``prompt_tokens`` and ``calls`` are of all model calls that the answer took, also of a first try that was not used.
    ``seconds`` is the question's share of the wall time of the batch that it was answered in.
    """

    model_config = ConfigDict(frozen=True)

    arm: Arm
    kind: QuestionKind
    question: str
    gold: str
    answer: str
    correct: bool
    abstained: bool = False
    route: str | None = None
    reason: str | None = None
    adapter: str | None = None
    fact_id: str | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0
    calls: int = 0
    seconds: float = 0.0


class ArmsResult(BaseModel):
    """All rows, what limits them (``notes``), and under which conditions they were made (``stamp``)."""

    model_config = ConfigDict(frozen=True)

    rows: tuple[ArmRow, ...]
    notes: tuple[str, ...] = ()
    stamp: dict[str, Any] = {}

    @property
    def arms(self) -> list[Arm]:
        """The arms that have rows, in their usual order."""
        present = {row.arm for row in self.rows}
        return [arm for arm in ARMS if arm in present]

    @property
    def kinds(self) -> list[QuestionKind]:
        """The kinds of questions that have rows, in their usual order."""
        present = {row.kind for row in self.rows}
        return [kind for kind in KINDS if kind in present]

    def accuracy(self) -> dict[str, dict[str, float]]:
        """By arm and kind: the share of right answers."""
        return {
            arm: {
                kind: mean(row.correct for row in self.of(arm) if row.kind == kind)
                for kind in self.kinds
                if any(row.kind == kind for row in self.of(arm))
            }
            for arm in self.arms
        }

    def mean_of(self, value: Callable[[ArmRow], float]) -> dict[str, float]:
        """By arm: the mean of ``value`` over its rows, each kind weighing the same.

        Arms that were asked a sample of some kinds stay comparable with the others.
        """
        return {
            arm: mean(
                mean(value(row) for row in self.of(arm) if row.kind == kind)
                for kind in self.kinds
                if any(row.kind == kind for row in self.of(arm))
            )
            for arm in self.arms
        }

    def of(self, arm: Arm) -> list[ArmRow]:
        """The rows of one arm."""
        return [row for row in self.rows if row.arm == arm]

    def summary(self) -> dict[str, Any]:
        """``arms`` (accuracy by arm and kind), ``tokens``, ``seconds`` and ``calls`` (mean by arm), ``questions``."""
        return {
            "arms": _rounded(self.accuracy()),
            "tokens": _rounded(self.mean_of(lambda row: row.prompt_tokens)),
            "seconds": _rounded(self.mean_of(lambda row: row.seconds)),
            "calls": _rounded(self.mean_of(lambda row: row.calls)),
            "questions": {
                arm: {kind: sum(row.kind == kind for row in self.of(arm)) for kind in self.kinds} for arm in self.arms
            },
            "notes": list(self.notes),
        }

    def merged(self, later: ArmsResult) -> ArmsResult:
        """These rows and those of a later part of the same experiment; its stamp is kept as ``later`` in this one's."""
        notes = dict.fromkeys((*self.notes, *later.notes))
        changed = {key: value for key, value in later.stamp.items() if self.stamp.get(key) != value}
        stamp = {**self.stamp, "later": changed}
        return ArmsResult(rows=(*self.rows, *later.rows), notes=tuple(notes), stamp=stamp)

    def write(self, folder: Path) -> None:
        """Write ``rows.jsonl`` and ``about.json`` (notes, stamp, summary); ``read`` takes them up again."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(row.model_dump_json(exclude_defaults=True) + "\n" for row in self.rows)
        (folder / ROWS_FILE).write_text(lines, encoding="utf-8")
        about = {"stamp": self.stamp, "summary": self.summary()}
        (folder / ABOUT_FILE).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What ``write`` wrote; the figures are computed anew from the rows.

        Raises:
            InvalidInput: a file is missing. InvalidRecord: a row is broken; names the line.
        """
        try:
            lines = (folder / ROWS_FILE).read_text(encoding="utf-8").splitlines()
            about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"no results can be read here: {error}", place=str(folder), remedy="Run the experiment again."
            ) from error
        rows = tuple(_row(line, folder / ROWS_FILE, number) for number, line in enumerate(lines, start=1))
        return cls(rows=rows, notes=tuple(about["summary"]["notes"]), stamp=about["stamp"])


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean; ``values`` must not be empty."""
    found: Sequence[float] = [float(value) for value in values]
    return sum(found) / len(found)


def _row(line: str, path: Path, number: int) -> ArmRow:
    try:
        return ArmRow.model_validate_json(line)
    except ValidationError as error:
        raise InvalidRecord(describe(error), path=str(path), line=number) from error


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 4)
