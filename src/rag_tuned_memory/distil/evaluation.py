"""What was measured of an adapter: value types that the gate judges and the report shows."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

QuestionKind = Literal["local", "global", "unknown", "fresh", "general"]
"""local: about one episode; global: about all of them; unknown: about an entity that the memory never saw; fresh: about
an episode newer than the adapter; general: needs no memory."""


class ProbeRow(BaseModel):
    """One probe and its answer."""

    model_config = ConfigDict(frozen=True)

    kind: QuestionKind
    question: str
    gold: str
    answer: str
    correct: bool
    fact_id: str | None = None


class Evaluation(BaseModel):
    """Probes of one adapter. ``metrics`` has the names of ``recipe.Gate``'s fields, one float each."""

    model_config = ConfigDict(frozen=True)

    metrics: dict[str, float]
    rows: tuple[ProbeRow, ...]


class TrainingCurvePoint(BaseModel):
    """One optimiser step."""

    model_config = ConfigDict(frozen=True)

    step: int
    tokens: int
    loss: float
    tokens_per_second: float
