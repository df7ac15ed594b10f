"""Whether an adapter may serve: each measured figure against its threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from rag_tuned_memory.distil.recipe import Gate

Direction = Literal["at_least", "at_most"]


@dataclass(frozen=True, slots=True)
class Measure:
    """How to read one metric. ``low`` and ``high`` bound what it can be at all: outside, it was measured wrongly."""

    label: str
    direction: Direction
    low: float = 0.0
    high: float = 1.0


MEASURES: Mapping[str, Measure] = {
    "local_recall": Measure("recall of local facts", "at_least"),
    "global_recall": Measure("recall of global facts", "at_least"),
    "abstention": Measure("abstention on unknown entities", "at_least"),
    "general_agreement": Measure("agreement with the base model on general prompts", "at_least"),
    "perplexity_ratio": Measure("growth of perplexity on general text", "at_most", low=math.ulp(0.0), high=math.inf),
    "acting": Measure("recorded calls that it makes too", "at_least"),
    "unique_answers": Measure("ratio of distinct answers", "at_least", high=math.inf),
    "canary_margin": Measure("distance from the base model (nats a token)", "at_least", high=math.inf),
    "canary_lead": Measure("greedy canary tokens that the base answers otherwise", "at_least"),
}
"""One entry for each field of ``recipe.Gate``."""

OPTIONAL = frozenset({"acting"})
"""There is nothing to measure where no run with its tools is on record."""


class Verdict(BaseModel):
    """One threshold's part in the decision. ``value`` is None when it was not measured, or is no usable number."""

    model_config = ConfigDict(frozen=True)

    metric: str
    value: float | None
    threshold: float
    direction: Direction
    passed: bool
    sentence: str


class Decision(BaseModel):
    """Whether the adapter is accepted, and why: one verdict for each threshold, in the gate's order."""

    model_config = ConfigDict(frozen=True)

    accepted: bool
    reasons: tuple[Verdict, ...]

    @property
    def failures(self) -> tuple[Verdict, ...]:
        """The verdicts that did not pass."""
        return tuple(verdict for verdict in self.reasons if not verdict.passed)

    @property
    def summary(self) -> str:
        """One line: that all thresholds are met, or the sentences of those that are not."""
        if self.accepted:
            return f"The gate accepted it: all {len(self.reasons)} thresholds are met."
        return "The gate rejected it. " + " ".join(verdict.sentence for verdict in self.failures)


def decide(metrics: Mapping[str, float | None], gate: Gate) -> Decision:
    """Judge ``metrics`` by ``gate``; accepted only when every threshold is met.

    Fails closed: a metric that is missing, NaN, infinite, or outside of what it can be (a share of 85 instead of 0.85)
    does not pass. Metrics that the gate does not name are ignored, and so is the threshold of one of ``OPTIONAL`` that
    was not measured.
    """
    judged = [name for name in type(gate).model_fields if name in metrics or name not in OPTIONAL]
    reasons = tuple(_judge(name, metrics.get(name), getattr(gate, name)) for name in judged)
    return Decision(accepted=all(verdict.passed for verdict in reasons), reasons=reasons)


def _judge(metric: str, value: float | None, threshold: float) -> Verdict:
    measure = MEASURES[metric]
    label = measure.label[0].upper() + measure.label[1:]
    if value is None:
        problem = "was not measured"
    elif not math.isfinite(value):
        problem, value = f"is {str(value).replace('nan', 'NaN')}, which is no usable number", None
    elif not measure.low <= value <= measure.high:
        problem = f"is {value:.4g}, which it cannot be: it was measured wrongly"
    else:
        return _compare(metric, label, measure.direction, value, threshold)
    return Verdict(
        metric=metric,
        value=value,
        threshold=threshold,
        direction=measure.direction,
        passed=False,
        sentence=f"{label} {problem}.",
    )


def _compare(metric: str, label: str, direction: Direction, value: float, threshold: float) -> Verdict:
    passed = value >= threshold if direction == "at_least" else value <= threshold
    must = "at least" if direction == "at_least" else "at most"
    shown, limit = _distinguishable(value, threshold)
    return Verdict(
        metric=metric,
        value=value,
        threshold=threshold,
        direction=direction,
        passed=passed,
        sentence=f"{label} is {shown}; it must be {must} {limit}.",
    )


def _distinguishable(value: float, threshold: float) -> tuple[str, str]:
    """Both numbers with two decimals, or as many as it takes to tell them apart."""
    for digits in range(2, 8):
        shown, limit = f"{value:.{digits}f}", f"{threshold:.{digits}f}"
        if shown != limit:
            return shown, limit
    return f"{value:.2f}", f"{threshold:.2f}"
