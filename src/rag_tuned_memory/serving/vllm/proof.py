"""The proof, after a load, that an adapter answers under its name, and that the base beside it is still the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rag_tuned_memory.errors import CanaryMismatch
from rag_tuned_memory.serving.base import Fingerprint, Generation, Request
from rag_tuned_memory.serving.fingerprint import (
    GREEDY_TOKENS,
    MIN_AGREEMENT,
    agreement,
    continuation,
    lead,
    messages_of,
    verify,
    verify_by_generating,
)
from rag_tuned_memory.serving.together import together
from rag_tuned_memory.serving.vllm.completions import Completions, Live
from rag_tuned_memory.serving.vllm.server import VllmServer


async def prove(
    server: VllmServer, completions: Completions, name: str, live: Live, fingerprint: Fingerprint | None
) -> bool:
    """Prove an adapter; returns whether the server computes base requests right that run beside it.

    Without a fingerprint the proof is that the server lists the name with our path. By greedy answers where the
    fingerprint has them, which go through the server's caches, else by scores.

    Raises:
        CanaryMismatch: what answers is another adapter, or the base.
        BackendError: see ``errors``.
    """
    if fingerprint is None:
        if (await server.listing()).adapters.get(name) != live.path:
            raise CanaryMismatch("the server does not list the adapter that it was told to load", place=name)
        return True
    unproven = _Unproven(completions, live)
    if lead(fingerprint) <= 0:
        await verify(unproven, name, fingerprint)
        return True
    await verify_by_generating(unproven, name, fingerprint)
    expected = [canary.base_greedy for canary in fingerprint.canaries if canary.base_greedy]
    if agreement(unproven.beside, expected) >= MIN_AGREEMENT:
        return True
    # Another dtype turns near ties of the base too: what counts is what the same server says without company.
    asked = [Request(messages_of(canary), None, GREEDY_TOKENS) for canary in fingerprint.canaries]
    alone = await together(lambda request: completions.answer(request, None, alone=True), asked)
    return agreement(unproven.beside, [continuation(one) for one in alone]) >= MIN_AGREEMENT


@dataclass
class _Unproven:
    """Generates and scores with an adapter that no request may name yet; the base is asked the same beside it."""

    completions: Completions
    live: Live
    beside: list[Generation] = field(default_factory=list)

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        tuned = [(request, self.live) for request in requests]
        base = [(replace(request, adapter=None), None) for request in requests]
        answers = await together(lambda one: self.completions.answer(*one), [*tuned, *base])
        self.beside = answers[len(requests) :]
        return answers[: len(requests)]

    async def score(self, request: Request, completions: Sequence[str]) -> list[tuple[float, ...]]:
        return await self.completions.scores(request, completions, self.live)
