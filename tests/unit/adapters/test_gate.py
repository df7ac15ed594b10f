import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_tuned_memory.adapters.gate import MEASURES, OPTIONAL, Decision, decide
from rag_tuned_memory.distil.recipe import Gate

GOOD = {
    "local_recall": 0.95,
    "global_recall": 0.92,
    "abstention": 0.4,
    "acting": 0.8,
    "general_agreement": 0.5,
    "perplexity_ratio": 1.3,
    "unique_answers": 0.9,
    "canary_margin": 2.5,
    "canary_lead": 0.9,
}


def test_every_threshold_of_the_recipe_has_a_measure() -> None:
    assert set(MEASURES) == set(Gate.model_fields)


def test_accepts_when_all_thresholds_are_met() -> None:
    decision = decide(GOOD, Gate())
    assert decision.accepted
    assert [verdict.metric for verdict in decision.reasons] == list(Gate.model_fields)
    assert decision.failures == ()
    assert "all 9 thresholds" in decision.summary


@pytest.mark.parametrize(
    ("metric", "bad", "sentence"),
    [
        ("local_recall", 0.42, "Recall of local facts is 0.42; it must be at least 0.85."),
        ("perplexity_ratio", 4.5, "Growth of perplexity on general text is 4.50; it must be at most 4.00."),
        ("local_recall", 0.849999, "Recall of local facts is 0.849999; it must be at least 0.850000."),
        ("local_recall", 85.0, "Recall of local facts is 85, which it cannot be: it was measured wrongly."),
        ("perplexity_ratio", 0.0, "Growth of perplexity on general text is 0, which it cannot be: "),
        ("perplexity_ratio", -math.inf, "is -inf, which is no usable number"),
        ("unique_answers", math.inf, "is inf, which is no usable number"),
        ("abstention", math.nan, "Abstention on unknown entities is NaN, which is no usable number."),
    ],
)
def test_one_bad_figure_rejects_and_the_sentence_says_why(metric: str, bad: float, sentence: str) -> None:
    decision = decide(GOOD | {metric: bad}, Gate())
    assert not decision.accepted
    (failure,) = decision.failures
    assert failure.metric == metric
    assert sentence in failure.sentence
    assert failure.sentence in decision.summary
    assert Decision.model_validate_json(decision.model_dump_json()) == decision


@pytest.mark.parametrize("metric", list(Gate.model_fields))
@pytest.mark.parametrize("value", ["absent", None, math.nan])
def test_what_was_not_measured_fails(metric: str, value: float | str | None) -> None:
    metrics = {name: figure for name, figure in GOOD.items() if name != metric}
    if value != "absent":
        metrics[metric] = value  # type: ignore[assignment]
    decision = decide(metrics, Gate())
    if value == "absent" and metric in OPTIONAL:
        assert decision.accepted
        assert len(decision.reasons) == len(GOOD) - 1
        return
    assert [verdict.metric for verdict in decision.failures] == [metric]
    assert decision.failures[0].value is None


def test_a_figure_exactly_at_its_threshold_passes() -> None:
    gate = Gate()
    assert decide(gate.model_dump(), gate).accepted


@given(st.floats(0, 1), st.floats(0, 1))
def test_direction(value: float, threshold: float) -> None:
    decision = decide(GOOD | {"local_recall": value}, Gate(local_recall=threshold))
    assert decision.accepted == (value >= threshold)
    ratio, limit = 1 + value, 1 + threshold
    assert decide(GOOD | {"perplexity_ratio": ratio}, Gate(perplexity_ratio=limit)).accepted == (ratio <= limit)
