"""What the worker thread runs: prompts to jobs, batches to answers, completions to scores."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_tuned_memory.errors import InvalidInput, PromptTooLong
from rag_tuned_memory.serving.base import Fingerprint, Request
from rag_tuned_memory.serving.chat import encode, render
from rag_tuned_memory.serving.fingerprint import compare, messages_of
from rag_tuned_memory.serving.local import prefix as prefixes
from rag_tuned_memory.serving.local.adapters import AdapterSlots
from rag_tuned_memory.serving.local.grammar import Grammars
from rag_tuned_memory.serving.local.model import LanguageModel, PaddedBatch

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_MIN_PREFIX = 64
"""A shorter prefix is not worth a forward pass of its own."""
_KEPT_PREFIXES = 2


@dataclass
class Engine:
    """A model with its adapters and cached prefixes. Only the worker thread may use it."""

    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    slots: AdapterSlots
    shares_prefixes: bool
    max_rows: int
    max_tokens: int
    grammars: Grammars = field(default_factory=Grammars)
    _prefixes: OrderedDict[tuple[int | None, tuple[int, ...]], prefixes.PrefixCache] = field(
        default_factory=OrderedDict
    )

    @classmethod
    def load(
        cls,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: str | None,
        dtype: str | None,
        max_rows: int,
        max_tokens: int,
    ) -> Engine:
        """Load the model. Raises what ``LanguageModel.load`` raises."""
        model = LanguageModel.load(folder, device=device, dtype=dtype)
        shares = prefixes.install(model.lm)
        return cls(model, tokenizer, AdapterSlots(model.lm), shares, max_rows, max_tokens)

    def prompt(self, request: Request, *, answer_tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The request's prompt as (shared prefix, own tokens).

        Raises:
            PromptTooLong: prompt and ``answer_tokens`` do not fit into the model's context.
            InvalidInput: see ``chat.render``.
        """
        ids = render(self.tokenizer, request.messages)
        self.check_length(len(ids), answer_tokens)
        shared = self._shared_length(request, ids)
        return tuple(ids[:shared]), tuple(ids[shared:])

    def check_length(self, prompt_tokens: int, answer_tokens: int) -> None:
        """Raise PromptTooLong where prompt and answer do not fit into the model's context."""
        if prompt_tokens + answer_tokens > self.model.context:
            raise PromptTooLong(
                f"the prompt has {prompt_tokens} tokens and the answer up to {answer_tokens}, together more than the "
                f"model's context of {self.model.context}",
                remedy=f"Shorten the prompt to {max(self.model.context - answer_tokens, 0)} tokens, e.g. by a lower "
                "recall budget, or ask for a shorter answer.",
            )

    def _shared_length(self, request: Request, ids: Sequence[int]) -> int:
        if not (self.shares_prefixes and request.shared_prefix):
            return 0
        try:
            leading = render(self.tokenizer, request.messages[: request.shared_prefix], generation_prompt=False)
        except InvalidInput:
            raise
        except Exception:
            # Some templates refuse messages without a user's turn; then there is nothing to share.
            return 0
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(leading, ids[:-1], strict=False)))
        return same if same >= _MIN_PREFIX else 0

    def prefix(self, slot: int | None, ids: tuple[int, ...]) -> prefixes.PrefixCache | None:
        """Keys and values of a prefix under an adapter, computed once and kept while it is in use."""
        if not ids:
            return None
        key = (slot, ids)
        if key not in self._prefixes:
            cache = self.new_cache()
            self.logits(PaddedBatch.of([ids], self.model.device), [slot], cache)
            self._prefixes[key] = prefixes.PrefixCache.of(cache)
        self._prefixes.move_to_end(key)
        while len(self._prefixes) > _KEPT_PREFIXES:
            self._prefixes.popitem(last=False)
        return self._prefixes[key]

    def new_cache(self) -> Any:
        """An empty cache of keys and values."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.lm.config)

    def logits(
        self,
        batch: PaddedBatch,
        slots: Sequence[int | None],
        cache: Any,
        *,
        keep: int = 1,
        prefix: prefixes.PrefixCache | None = None,
    ) -> torch.Tensor:
        """Next-token logits of the last ``keep`` columns: float32 ``(rows, keep, vocabulary)``."""
        inputs = {
            "input_ids": batch.ids,
            "attention_mask": batch.mask,
            "position_ids": batch.positions,
            "past_key_values": cache,
            "use_cache": cache is not None,
            "logits_to_keep": keep,
        }
        if prefix is not None:
            inputs["shared_prefix"] = prefix
        logits: torch.Tensor = self.slots.forward(slots, **inputs).logits
        return logits.float()

    def score(self, request: Request, slot: int | None, completions: Sequence[str]) -> list[tuple[float, ...]]:
        """Log-probabilities of each completion's tokens after the prompt, in as few passes as fit."""
        import torch

        answers = [encode(self.tokenizer, text) for text in completions]
        shared, own = self.prompt(request, answer_tokens=max(map(len, answers), default=0))
        scores: list[tuple[float, ...]] = [()] * len(answers)
        order = sorted((i for i, answer in enumerate(answers) if answer), key=lambda i: len(answers[i]))
        with torch.inference_mode():
            while order:
                longest = len(own) + len(answers[order[-1]])
                rows = [order.pop() for _ in range(min(len(order), self.max_rows, max(1, self.max_tokens // longest)))]
                for index, row in zip(rows, self._score(slot, shared, own, [answers[i] for i in rows]), strict=True):
                    scores[index] = row
        return scores

    def score_ids(self, ids: tuple[int, ...], slot: int | None) -> tuple[float, ...]:
        """Log-probability of each token but the first, after those before it. Raises PromptTooLong."""
        import torch

        self.check_length(len(ids), 0)
        with torch.inference_mode():
            return self._score(slot, (), ids[:1], [list(ids[1:])])[0] if ids[1:] else ()

    def _score(
        self, slot: int | None, shared: tuple[int, ...], own: tuple[int, ...], answers: Sequence[list[int]]
    ) -> list[tuple[float, ...]]:
        prefix = self.prefix(slot, shared)
        batch = PaddedBatch.of([(*own, *answer) for answer in answers], self.model.device, start=len(shared))
        keep = max(map(len, answers)) + 1
        logits = self.logits(batch, [slot] * len(answers), None, keep=keep, prefix=prefix)
        logprobs = logits[:, :-1].log_softmax(-1)
        targets = batch.ids[:, -(keep - 1) :, None]
        picked = logprobs.gather(2, targets)[:, :, 0].tolist()
        return [tuple(row[-len(answer) :]) for row, answer in zip(picked, answers, strict=True)]

    def load_adapter(self, name: str, folder: Path, fingerprint: Fingerprint | None) -> int:
        """Load files into a new slot and hold them against the fingerprint; returns the slot.

        Raises:
            AdapterDamaged, CanaryMismatch: nothing of the adapter is left behind.
        """
        slot = self.slots.add(folder)
        try:
            if fingerprint is not None:
                measured = [
                    self.score(Request(messages_of(canary)), slot, [canary.answer])[0]
                    for canary in fingerprint.canaries
                ]
                compare(name, fingerprint, measured)
        except BaseException:
            self.remove_adapter(slot)
            raise
        return slot

    def remove_adapter(self, slot: int) -> None:
        """Free the slot and what was computed with it."""
        for key in [key for key in self._prefixes if key[0] == slot]:
            del self._prefixes[key]
        self.slots.remove(slot)
