"""Drawing the next token of one row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rag_tuned_memory.serving.local.asked import Constraint, Sampling

if TYPE_CHECKING:
    import torch


class Sampler:
    """Chooses one row's tokens. It has a generator of its own, so that a seed gives the same answer in any batch.

    The warping is transformers', in TGI's order: penalties, constraint, temperature, top-k, top-p, typical-p.
    """

    def __init__(self, sampling: Sampling, prompt: tuple[int, ...], constraint: Constraint | None = None) -> None:
        import torch

        self._sampling = sampling
        self._seen = list(prompt)
        self._constraint = constraint
        self._warpers = _warpers(sampling)
        self._generator = None
        if sampling.temperature > 0:
            self._generator = torch.Generator()
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)

    def warp(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits ``(vocabulary,)`` that the choice is made by."""
        import torch

        scores = logits.cpu()[None]
        seen = torch.tensor(self._seen)[None]
        for warper in self._warpers:
            scores = warper(seen, scores)
        warped = scores[0]
        return (self._constraint.allow(warped) if self._constraint else warped).to(logits.device)

    def choose(self, warped: torch.Tensor) -> int:
        """One token of warped logits."""
        import torch

        if self._generator is None:
            chosen = int(warped.argmax())
        else:
            chosen = int(torch.multinomial(warped.cpu().softmax(-1), 1, generator=self._generator)[0])
        self._seen.append(chosen)
        if self._constraint:
            self._constraint.advance(chosen)
        return chosen


def _warpers(sampling: Sampling) -> list[Any]:
    from transformers import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    )

    found: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        found.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.frequency_penalty:
        found.append(lambda seen, scores: scores - sampling.frequency_penalty * _shares(seen, scores))
    if sampling.temperature > 0:
        found.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            found.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            found.append(TopPLogitsWarper(sampling.top_p))
        if sampling.typical_p < 1:
            found.append(TypicalLogitsWarper(mass=sampling.typical_p))
    return found


def _shares(seen: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """How often each token of the vocabulary occurs in ``seen``, by its length."""
    import torch

    return torch.bincount(seen[0], minlength=scores.shape[1])[None, : scores.shape[1]] / seen.shape[1]
