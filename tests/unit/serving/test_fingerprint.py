from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from rag_tuned_memory.errors import CanaryMismatch, InvalidInput
from rag_tuned_memory.serving.base import CanaryPrompt, Continuation, Fingerprint, Generation, Message, Request, Token
from rag_tuned_memory.serving.fingerprint import (
    compare,
    compare_greedy,
    lead,
    make_fingerprint,
    messages_of,
    verify_by_generating,
)

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

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        return [self.answer((7, 8) if request.adapter else (7, 9), request.adapter) for request in requests]

    def answer(self, ids: Sequence[int], adapter: str | None) -> Generation:
        tokens = [Token(one, f"t{one}", -0.5, 0.0) for one in ids]
        return Generation("", (*tokens, Token(2, "", -0.1, 0.0)), 3, "stop", adapter, 0.0)


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


def greedy(own: tuple[int, ...], base: tuple[int, ...], logprob: float = -0.5) -> Fingerprint:
    """One canary whose greedy answers are these."""
    canary = (
        fingerprint((-0.1,), (-5.0,))
        .canaries[0]
        .model_copy(update={"adapter_greedy": continuation(own, logprob), "base_greedy": continuation(base, logprob)})
    )
    return Fingerprint(canaries=(canary,), tolerance=0.1, margin=1.0)


def continuation(ids: tuple[int, ...], logprob: float = -0.5) -> Continuation:
    return Continuation(ids=ids, logprobs=tuple(logprob for _ in ids))


async def test_greedy_answers_are_kept_without_the_token_that_ended_them() -> None:
    made = await make_fingerprint(Fixed(), "v1", [([Message("user", "q")], "a b")])
    assert made.canaries[0].adapter_greedy == continuation((7, 8))
    assert made.canaries[0].base_greedy == continuation((7, 9))
    assert lead(made) == 0.5
    await verify_by_generating(Fixed(), "v1", made)


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (continuation((1, 6, 7, 8, 9)), "answers as the base model does"),
        (continuation((5, 2, 3, 4, 5)), "0% of the fingerprint's tokens come back"),
        (continuation(()), "0% of the fingerprint's tokens come back"),
        (continuation((1, 2, 5, 5, 5)), "40% of the fingerprint's tokens come back, 60% are asked for"),
        (continuation((1, 2, 3, 4, 5), -0.7), "0.200 nats a token away"),
        (continuation((1, 2, 3, 4, 5), math.nan), "nan nats a token away"),
    ],
)
def test_greedy_answers_that_do_not_match_are_refused(measured: Continuation, message: str) -> None:
    with pytest.raises(CanaryMismatch, match=message):
        compare_greedy("v7", greedy((1, 2, 3, 4, 5), (1, 6, 7)), [measured])


@pytest.mark.parametrize("ids", [(1, 2, 3, 4, 5), (1, 2, 3, 4, 9, 9), (1, 2, 3)])
def test_a_near_tie_may_turn_the_end(ids: tuple[int, ...]) -> None:
    compare_greedy("v7", greedy((1, 2, 3, 4, 5), (1, 6, 7)), [continuation(ids, -0.55)])


def test_without_greedy_answers_nothing_is_proven() -> None:
    bare = fingerprint((-0.1,), (-5.0,))
    assert lead(bare) == 0
    with pytest.raises(CanaryMismatch, match="has no greedy answers"):
        compare_greedy("v7", bare, [continuation((1,))])


def test_greedy_answers_like_the_bases_prove_nothing() -> None:
    with pytest.raises(CanaryMismatch, match="as the base"):
        compare_greedy("v7", greedy((1, 2), (1, 2)), [continuation((1, 2))])
