"""Fingerprints: the proof, after each load, that the adapter that answers is the one that was trained.

A server can answer an unknown adapter from the base model, or an old one from a stale cache, and say nothing. So
fixed answers are scored when the adapter is made, with it and without it, and again after every load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rag_tuned_memory.errors import CanaryMismatch, InvalidInput
from rag_tuned_memory.serving.base import CanaryPrompt, Fingerprint, Message, Request

Logprobs = Sequence[float]

DEFAULT_TOLERANCE = 0.15
"""Mean absolute difference a token, in nats, that the same adapter may show.

Measured with SmolLM2-135M (``benchmarks/local_backend``): see its README for what bf16 against fp32, batches of one
against eight, and two different adapters give.
"""


class Scorer(Protocol):
    """The part of an InferenceBackend that a fingerprint needs."""

    async def score(self, request: Request, completions: Sequence[str]) -> list[tuple[float, ...]]: ...  # noqa: D102


async def make_fingerprint(
    scorer: Scorer,
    adapter: str,
    prompts: Sequence[tuple[Sequence[Message], str]],
    *,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Fingerprint:
    """Score fixed answers with the adapter and with the base model.

    ``prompts`` are (messages, answer) pairs; best are questions that the adapter learnt, with their answers: there it
    differs most from the base.

    Raises:
        InvalidInput: no prompts, or an answer without tokens.
    """
    if not prompts:
        raise InvalidInput("a fingerprint needs at least one prompt")
    canaries = []
    for messages, answer in prompts:
        (tuned,) = await scorer.score(Request(tuple(messages), adapter=adapter), [answer])
        (base,) = await scorer.score(Request(tuple(messages)), [answer])
        if not tuned:
            raise InvalidInput(f"the canary answer {answer!r} has no tokens", remedy="Give it some text.")
        prompt = tuple((message.role, message.content) for message in messages)
        canaries.append(CanaryPrompt(prompt=prompt, answer=answer, adapter_logprobs=tuned, base_logprobs=base))
    margin = _mean_difference([c.adapter_logprobs for c in canaries], [c.base_logprobs for c in canaries])
    return Fingerprint(canaries=tuple(canaries), tolerance=tolerance, margin=margin)


async def verify(scorer: Scorer, name: str, fingerprint: Fingerprint) -> None:
    """Score the canaries with the adapter ``name`` of a backend and compare.

    Raises:
        CanaryMismatch: what answers under this name is not the adapter of the fingerprint.
    """
    measured = [
        (await scorer.score(Request(messages_of(canary), adapter=name), [canary.answer]))[0]
        for canary in fingerprint.canaries
    ]
    compare(name, fingerprint, measured)


def messages_of(canary: CanaryPrompt) -> tuple[Message, ...]:
    """The canary's prompt as chat messages."""
    return tuple(Message(role, content) for role, content in canary.prompt)  # type: ignore[arg-type]


def compare(name: str, fingerprint: Fingerprint, measured: Sequence[Logprobs]) -> None:
    """Hold measured log-probabilities, one row a canary, against the fingerprint.

    Raises:
        CanaryMismatch: another number of tokens, further away than the tolerance, or nearer to the base.
    """
    remedy = "The files or the base model differ from those it was trained with: retrain it, or restore them."
    tuned = [canary.adapter_logprobs for canary in fingerprint.canaries]
    base = [canary.base_logprobs for canary in fingerprint.canaries]
    if [len(row) for row in measured] != [len(row) for row in tuned]:
        raise CanaryMismatch(
            "the canary answers have another number of tokens: another tokenizer", place=name, remedy=remedy
        )
    off, off_base = _mean_difference(measured, tuned), _mean_difference(measured, base)
    # Written so that NaN fails too.
    if not off < off_base:
        raise CanaryMismatch(
            f"it answers as the base model does: {off_base:.3f} nats a token from it, {off:.3f} from the adapter",
            place=name,
            remedy=remedy,
        )
    if not off <= fingerprint.tolerance:
        raise CanaryMismatch(
            f"it answers {off:.3f} nats a token away from its fingerprint, allowed are {fingerprint.tolerance}",
            place=name,
            remedy=remedy,
        )


def _mean_difference(left: Sequence[Logprobs], right: Sequence[Logprobs]) -> float:
    """Mean absolute difference over all tokens."""
    differences = [abs(a - b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(differences) / len(differences)
