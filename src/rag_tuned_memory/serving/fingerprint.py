"""Fingerprints: the proof, after each load, that the adapter that answers is the one that was trained.

A server can answer an unknown adapter from the base model, or an old one from a stale cache, and say nothing. So
fixed answers are scored when the adapter is made, with it and without it, and again after every load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rag_tuned_memory.errors import CanaryMismatch, InvalidInput
from rag_tuned_memory.serving.base import CanaryPrompt, Continuation, Fingerprint, Generation, Message, Request

Logprobs = Sequence[float]

DEFAULT_TOLERANCE = 0.15
"""Mean absolute difference a token, in nats, that the same adapter may show.

Measured with SmolLM2-135M (``benchmarks/local_backend``): see its README for what bf16 against fp32, batches of one
against eight, and two different adapters give.
"""


GREEDY_TOKENS = 16
"""Length of the greedy answers of a fingerprint."""
MIN_AGREEMENT = 0.6
"""Share of greedy tokens that the same adapter repeats: dtype and batching turn near ties, and all that follows."""
MIN_LEAD = 0.2
"""By how much this share is greater than the one of tokens that the base would have given."""
_REMEDY = "The files or the base model differ from those it was trained with: retrain it, or restore them."


class Scorer(Protocol):
    """The part of an InferenceBackend that scores."""

    async def score(self, request: Request, completions: Sequence[str]) -> list[tuple[float, ...]]: ...  # noqa: D102


class Generator(Protocol):
    """The part of an InferenceBackend that generates."""

    async def generate(self, requests: Sequence[Request]) -> list[Generation]: ...  # noqa: D102


class Both(Scorer, Generator, Protocol):
    """What making a fingerprint needs."""


async def make_fingerprint(
    backend: Both,
    adapter: str,
    prompts: Sequence[tuple[Sequence[Message], str]],
    *,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Fingerprint:
    """Score fixed answers with the adapter and with the base model, and let both answer greedily.

    ``prompts`` are (messages, answer) pairs; best are questions that the adapter learnt, with their answers: there it
    differs most from the base.

    Raises:
        InvalidInput: no prompts, or an answer without tokens.
    """
    if not prompts:
        raise InvalidInput("a fingerprint needs at least one prompt")
    canaries = []
    for messages, answer in prompts:
        (tuned,) = await backend.score(Request(tuple(messages), adapter=adapter), [answer])
        (base,) = await backend.score(Request(tuple(messages)), [answer])
        if not tuned:
            raise InvalidInput(f"the canary answer {answer!r} has no tokens", remedy="Give it some text.")
        adapter_greedy, base_greedy = await _greedy(backend, [(messages, adapter), (messages, None)])
        canaries.append(
            CanaryPrompt(
                prompt=tuple((message.role, message.content) for message in messages),
                answer=answer,
                adapter_logprobs=tuned,
                base_logprobs=base,
                adapter_greedy=adapter_greedy,
                base_greedy=base_greedy,
            )
        )
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


async def verify_by_generating(generator: Generator, name: str, fingerprint: Fingerprint) -> None:
    """As ``verify``, where answers are generated: on servers that score no given text, and through their caches.

    Raises:
        CanaryMismatch: what answers under this name is not the adapter of the fingerprint, or it has no greedy answers.
    """
    compare_greedy(name, fingerprint, await _greedy(generator, [(messages_of(c), name) for c in fingerprint.canaries]))


async def _greedy(generator: Generator, asked: Sequence[tuple[Sequence[Message], str | None]]) -> list[Continuation]:
    requests = [Request(tuple(messages), adapter, GREEDY_TOKENS) for messages, adapter in asked]
    return [continuation(one) for one in await generator.generate(requests)]


def continuation(generation: Generation) -> Continuation:
    """A greedy answer without the token that ended it."""
    tokens = generation.tokens
    if tokens and generation.finish_reason == "stop" and not tokens[-1].text:
        tokens = tokens[:-1]
    return Continuation(ids=tuple(one.id for one in tokens), logprobs=tuple(one.logprob for one in tokens))


def messages_of(canary: CanaryPrompt) -> tuple[Message, ...]:
    """The canary's prompt as chat messages."""
    return tuple(Message(role, content) for role, content in canary.prompt)  # type: ignore[arg-type]


def compare(name: str, fingerprint: Fingerprint, measured: Sequence[Logprobs]) -> None:
    """Hold measured log-probabilities, one row a canary, against the fingerprint.

    Raises:
        CanaryMismatch: another number of tokens, further away than the tolerance, or nearer to the base.
    """
    tuned = [canary.adapter_logprobs for canary in fingerprint.canaries]
    base = [canary.base_logprobs for canary in fingerprint.canaries]
    if [len(row) for row in measured] != [len(row) for row in tuned]:
        raise CanaryMismatch(
            "the canary answers have another number of tokens: another tokenizer", place=name, remedy=_REMEDY
        )
    off, off_base = _mean_difference(measured, tuned), _mean_difference(measured, base)
    # Written so that NaN fails too.
    if not off < off_base:
        raise CanaryMismatch(
            f"it answers as the base model does: {off_base:.3f} nats a token from it, {off:.3f} from the adapter",
            place=name,
            remedy=_REMEDY,
        )
    if not off <= fingerprint.tolerance:
        raise CanaryMismatch(
            f"it answers {off:.3f} nats a token away from its fingerprint, allowed are {fingerprint.tolerance}",
            place=name,
            remedy=_REMEDY,
        )


def compare_greedy(name: str, fingerprint: Fingerprint, measured: Sequence[Continuation]) -> None:
    """Hold greedy answers, one a canary, against the fingerprint's.

    As far as the token ids agree with the adapter's, their log-probabilities are compared; how far they agree with the
    base's answers tells the two apart.

    Raises:
        CanaryMismatch: they disagree, or agree as much with the base's, or the fingerprint has none that could tell.
    """
    own, base = _recorded(fingerprint)
    if not own or len(own) != len(measured):
        raise CanaryMismatch(
            "the fingerprint has no greedy answers, so nothing proves on this server that the adapter is live",
            place=name,
            remedy="Distil again; `rtm adapters show` says what an adapter's manifest holds.",
        )
    share, of_base = _share(measured, own, own), _share(measured, base, own)
    if share - of_base < MIN_LEAD and of_base >= MIN_AGREEMENT:
        raise CanaryMismatch(
            f"it answers as the base model does: {of_base:.0%} of its tokens are the base's, {share:.0%} the adapter's",
            place=name,
            remedy=_REMEDY,
        )
    if share < MIN_AGREEMENT or share - of_base < MIN_LEAD:
        raise CanaryMismatch(
            f"{share:.0%} of the fingerprint's tokens come back, {MIN_AGREEMENT:.0%} are asked for; {of_base:.0%} are"
            " the base's",
            place=name,
            remedy=_REMEDY,
        )
    agreeing = [_agreeing(one, other) for one, other in zip(measured, own, strict=True)]
    off = _mean_difference(
        [one.logprobs[:count] for one, count in zip(measured, agreeing, strict=True)],
        [one.logprobs[:count] for one, count in zip(own, agreeing, strict=True)],
    )
    if not off <= fingerprint.tolerance:
        raise CanaryMismatch(
            f"it answers {off:.3f} nats a token away from its fingerprint, allowed are {fingerprint.tolerance}",
            place=name,
            remedy=_REMEDY,
        )


def lead(fingerprint: Fingerprint) -> float:
    """Share of the adapter's greedy tokens, 0 to 1, that the base answers otherwise; 0 without greedy answers."""
    own, base = _recorded(fingerprint)
    return 1 - _share(own, base, own) if own else 0.0


def agreement(answers: Sequence[Generation], expected: Sequence[Continuation]) -> float:
    """Share of the expected greedy tokens, 0 to 1, that the answers begin with; 1 where none are expected."""
    return _share([continuation(one) for one in answers], expected, expected) if any(e.ids for e in expected) else 1.0


def _recorded(fingerprint: Fingerprint) -> tuple[list[Continuation], list[Continuation]]:
    """The greedy answers of adapter and base; none where a canary lacks them."""
    own = [canary.adapter_greedy for canary in fingerprint.canaries if canary.adapter_greedy]
    base = [canary.base_greedy for canary in fingerprint.canaries if canary.base_greedy]
    complete = len(own) == len(base) == len(fingerprint.canaries)
    return (own, base) if complete and any(one.ids for one in own) else ([], [])


def _share(left: Sequence[Continuation], right: Sequence[Continuation], whole: Sequence[Continuation]) -> float:
    """In how much of ``whole``'s tokens two rows of answers begin alike."""
    return sum(map(_agreeing, left, right)) / sum(len(one.ids) for one in whole)


def _agreeing(left: Continuation, right: Continuation) -> int:
    """Length of the common beginning, in tokens."""
    pairs = zip(left.ids, right.ids, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(left.ids), len(right.ids)))


def _mean_difference(left: Sequence[Logprobs], right: Sequence[Logprobs]) -> float:
    """Mean absolute difference over all tokens."""
    differences = [abs(a - b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(differences) / len(differences)
