from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from rag_tuned_memory.errors import CanaryMismatch, InvalidInput
from rag_tuned_memory.serving.base import CanaryPrompt, Fingerprint, Message, Request
from rag_tuned_memory.serving.fingerprint import compare, make_fingerprint, messages_of

pytestmark = pytest.mark.anyio


def fingerprint(tuned: tuple[float, ...], base: tuple[float, ...], tolerance: float = 0.1) -> Fingerprint:
    canary = CanaryPrompt(prompt=(("user", "q"),), answer="a", adapter_logprobs=tuned, base_logprobs=base)
    return Fingerprint(canaries=(canary,), tolerance=tolerance, margin=1.0)


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ((-5.0, -7.0), "answers as the base model does"),
        ((-0.1, -1.0), "nats a token away from its fingerprint, allowed are 0.1"),
        ((-0.1,), "another number of tokens"),
        ((math.nan, -0.2), "answers as the base"),
        ((-math.inf, -0.2), "answers as the base|away"),
    ],
)
def test_what_does_not_match_is_refused(measured: tuple[float, ...], message: str) -> None:
    with pytest.raises(CanaryMismatch, match=f"v7: .*({message})"):
        compare("v7", fingerprint((-0.1, -0.2), (-5.0, -7.0)), [measured])


def test_rounding_is_allowed() -> None:
    compare("v7", fingerprint((-0.1, -0.2), (-5.0, -7.0)), [(-0.15, -0.25)])


def test_an_adapter_that_equals_the_base_proves_nothing() -> None:
    with pytest.raises(CanaryMismatch):
        compare("v7", fingerprint((-0.1,), (-0.1,)), [(-0.1,)])


class Fixed:
    async def score(self, request: Request, completions: Sequence[str]) -> list[tuple[float, ...]]:
        value = -0.5 if request.adapter else -2.0
        return [tuple(value for _ in text.split()) for text in completions]


async def test_the_margin_is_the_mean_difference() -> None:
    made = await make_fingerprint(Fixed(), "v1", [([Message("user", "q")], "a b"), ([Message("user", "r")], "c")])
    assert made.margin == pytest.approx(1.5)
    assert [canary.adapter_logprobs for canary in made.canaries] == [(-0.5, -0.5), (-0.5,)]
    assert messages_of(made.canaries[1]) == (Message("user", "r"),)


async def test_empty_fingerprints_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one prompt"):
        await make_fingerprint(Fixed(), "v1", [])
    with pytest.raises(InvalidInput, match="has no tokens"):
        await make_fingerprint(Fixed(), "v1", [([Message("user", "q")], " ")])
