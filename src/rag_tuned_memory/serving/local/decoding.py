"""The decode loop: one batch of jobs from prompts to answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rag_tuned_memory.serving.base import Generation, Token
from rag_tuned_memory.serving.local.batching import Job
from rag_tuned_memory.serving.local.model import PaddedBatch
from rag_tuned_memory.serving.local.text import TextStream

if TYPE_CHECKING:
    import torch

    from rag_tuned_memory.serving.local.engine import Engine


@dataclass
class _Row:
    """One job while it is generated."""

    job: Job
    stream: TextStream
    generator: torch.Generator | None
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    finish: Literal["stop", "length"] | None = None

    def take(self, token_id: int, logprob: float, entropy: float, *, is_end: bool) -> None:
        """Add one token; sets ``finish`` when it was the last."""
        piece, shown = ("", "") if is_end else self.stream.push(token_id)
        self.finish = "stop" if is_end or self.stream.stopped else None
        if self.finish is None and len(self.tokens) + 1 == self.job.request.max_new_tokens:
            self.finish = "length"
        if self.finish:
            rest, shown_rest = self.stream.finish()
            piece, shown = piece + rest, shown + shown_rest
            if self.stream.stopped:
                self.finish = "stop"
        self.tokens.append(Token(token_id, piece, logprob, entropy))
        self.text += shown
        if shown and self.job.on_text:
            self.job.on_text(shown)

    def done(self, seconds: float) -> Generation:
        """The finished answer."""
        assert self.finish is not None
        return Generation(
            text=self.text,
            tokens=tuple(self.tokens),
            prompt_tokens=len(self.job.prefix) + len(self.job.ids),
            finish_reason=self.finish,
            adapter=self.job.request.adapter,
            seconds=seconds,
        )


def decode(engine: Engine, jobs: Sequence[Job], stopping: Callable[[], bool]) -> None:
    """Run ``jobs`` (one prefix; with a prefix, one slot) as one batch and report to each as it finishes.

    A row leaves the batch as soon as it is finished or cancelled; the others' results do not depend on it. When
    ``stopping`` becomes true the rest is left unreported.
    """
    import torch

    with torch.inference_mode():
        began = time.perf_counter()
        rows = [_Row(job, TextStream(engine.tokenizer, job.request.stop), _generator(job)) for job in jobs]
        prefix = engine.prefix(jobs[0].slot, jobs[0].prefix)
        batch = PaddedBatch.of([job.ids for job in jobs], engine.model.device, start=len(jobs[0].prefix))
        cache = engine.new_cache()
        while not stopping():
            logits = engine.logits(batch, [row.job.slot for row in rows], cache, prefix=prefix)[:, -1]
            chosen = _advance(rows, logits, engine.model.end_ids)
            for row in rows:
                if row.finish:
                    row.job.report(row.done(time.perf_counter() - began))
            left = [i for i, row in enumerate(rows) if not row.finish and not row.job.cancelled]
            if not left:
                return
            if len(left) < len(rows):
                rows = [rows[i] for i in left]
                index = torch.tensor(left, device=chosen.device)
                cache.batch_select_indices(index)
                batch, chosen = batch.keep(index), chosen[index]
            batch = batch.next(chosen)


def _advance(rows: Sequence[_Row], logits: torch.Tensor, end_ids: frozenset[int]) -> torch.Tensor:
    """Choose the next token of each row from ``(rows, vocabulary)`` and give it to the row; returns ``(rows,)``.

    Log-probability and entropy are of the model's own distribution, at temperature 1, whatever the temperature that
    the token was drawn with.
    """
    logprobs = logits.log_softmax(-1)
    # The clamp gives a token of probability 0 its share 0, where -inf times 0 would be NaN.
    entropy = -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)
    chosen = logits.argmax(-1)
    for index, row in enumerate(rows):
        if row.generator is not None:
            chosen[index] = _sample(logits[index], row.job.request.temperature, row.generator)
    picked = logprobs.gather(1, chosen[:, None])[:, 0]
    for row, token_id, logprob, nats in zip(rows, chosen.tolist(), picked.tolist(), entropy.tolist(), strict=True):
        row.take(token_id, logprob, nats, is_end=token_id in end_ids)
    return chosen


def _generator(job: Job) -> torch.Generator | None:
    """A generator of its own for each sampled row, so that a seed gives the same answer in any batch."""
    if job.request.temperature == 0:
        return None
    import torch

    generator = torch.Generator()
    if job.request.seed is None:
        generator.seed()
    else:
        generator.manual_seed(job.request.seed)
    return generator


def _sample(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    import torch

    probabilities = (logits.cpu() / temperature).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)[0].to(logits.device)
