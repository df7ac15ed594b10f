"""One step of a group of rows that are decoded together, and how groups join and rows leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag_tuned_memory.serving.local.batching import Job
from rag_tuned_memory.serving.local.cache import join_caches, keep_rows, mixes
from rag_tuned_memory.serving.local.model import PaddedBatch
from rag_tuned_memory.serving.local.rows import Row, row_of

if TYPE_CHECKING:
    import torch

    from rag_tuned_memory.serving.local.engine import Engine


class Group:
    """Rows in one batch: of one prefix, and with a prefix of one adapter. Its first step computes the prompts.

    A row leaves as soon as it is finished or cancelled, and another group of the same kind can be taken in between
    two steps; the results of the others do not depend on it.
    """

    def __init__(self, engine: Engine, jobs: Sequence[Job]) -> None:
        self._engine = engine
        self._rows = [row_of(engine, job) for job in jobs]
        self._prefix_ids, self._slot = jobs[0].prefix, jobs[0].slot
        self._prefix = engine.prefix(self._slot, self._prefix_ids)
        self._batch = PaddedBatch.of([job.ids for job in jobs], engine.model.device, start=len(self._prefix_ids))
        self._cache = engine.new_cache()

    @property
    def jobs(self) -> list[Job]:
        """The jobs of the rows that are left."""
        return [row.job for row in self._rows]

    def step(self) -> None:
        """Choose a token for each row, and let go of the rows that are done."""
        import torch

        self._keep([i for i, row in enumerate(self._rows) if not row.job.cancelled])
        if not self._rows:
            return
        slots = [row.job.slot for row in self._rows]
        with torch.inference_mode():
            logits = self._engine.logits(self._batch, slots, self._cache, prefix=self._prefix)[:, -1]
            chosen, last = advance(self._rows, logits)
            self._batch = self._batch.next(chosen)
        self._keep([i for i, done in enumerate(last) if not done])

    def joins(self, other: Group) -> bool:
        """Whether the two can become one: same prefix, and a cache of keys and values only."""
        same = self._prefix_ids == other._prefix_ids and (not self._prefix_ids or self._slot == other._slot)
        return same and mixes(self._cache) and mixes(other._cache)

    def take_in(self, other: Group) -> None:
        """Add the other's rows, which have made their first step as these have."""
        import torch

        with torch.inference_mode():
            join_caches(self._cache, other._cache)
            self._batch = self._batch.joined(other._batch)
        self._rows += other._rows

    def _keep(self, left: list[int]) -> None:
        """Only these rows, and no column that none of them has a token in."""
        if len(left) == len(self._rows):
            return
        import torch

        self._rows = [self._rows[i] for i in left]
        if left:
            with torch.inference_mode():
                index = torch.tensor(left, device=self._batch.ids.device)
                self._batch = self._batch.keep(index)
                empty = self._batch.empty_columns() if mixes(self._cache) else 0
                self._batch = self._batch.without(empty)
                keep_rows(self._cache, index, drop=empty)


def advance(rows: Sequence[Row], logits: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
    """Choose the next token of each row from ``(rows, vocabulary)`` and give it to the row.

    Returns the tokens ``(rows,)``, and of each row whether it was the last. Without ``warped_logprobs``
    log-probability and entropy are of the model's own distribution, at temperature 1, whatever the temperature that
    the token was drawn with.
    """
    own = logits
    chosen = logits.argmax(-1)
    for index, row in enumerate(rows):
        if row.sampler is not None:
            try:
                warped = row.sampler.warp(logits[index])
                chosen[index] = row.sampler.choose(warped)
            except Exception as error:  # a constraint that gives up, say: the other rows go on
                row.job.report(error)
                row.job.cancelled = True
                continue
            if row.warped_logprobs:
                own = own.clone() if own is logits else own
                own[index] = warped
    logprobs = own.log_softmax(-1)
    # The clamp gives a token of probability 0 its share 0, where -inf times 0 would be NaN.
    entropy = -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)
    picked = logprobs.gather(1, chosen[:, None])[:, 0]
    figures = zip(chosen.tolist(), picked.tolist(), entropy.tolist(), strict=True)
    tops = _most_likely(logprobs, max(row.top for row in rows))
    last = [row.take(figure, top[: row.top]) for row, figure, top in zip(rows, figures, tops, strict=True)]
    return chosen, last


def _most_likely(logprobs: torch.Tensor, count: int) -> list[list[tuple[int, float]]]:
    """The ``count`` most likely tokens of each row, the most likely first."""
    if not count:
        return [[] for _ in logprobs]
    values, ids = logprobs.topk(count, -1)
    return [list(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True)]
