"""Answers that keep to a regular expression or a JSON schema, by llguidance."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from rag_tuned_memory.errors import InvalidInput

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class Grammars:
    """Makes constraints for one tokenizer, which is prepared when the first is asked for. Safe to use from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._prepared: Any = None

    def regex(self, tokenizer: PreTrainedTokenizerBase, pattern: str) -> GrammarConstraint:
        """A fresh constraint for one answer. Raises InvalidInput for a pattern that is none, MissingExtra."""
        return self._constraint(tokenizer, _matcher().grammar_from_regex(pattern))

    def json(self, tokenizer: PreTrainedTokenizerBase, schema: str) -> GrammarConstraint:
        """As ``regex``, for JSON of a schema, given as text."""
        return self._constraint(tokenizer, _matcher().grammar_from_json_schema(schema))

    def _constraint(self, tokenizer: PreTrainedTokenizerBase, grammar: str) -> GrammarConstraint:
        with self._lock:
            if self._prepared is None:
                from llguidance.hf import from_tokenizer

                self._prepared = from_tokenizer(tokenizer)
        matcher = _matcher()(self._prepared, grammar, log_level=0)
        if matcher.is_error():
            raise InvalidInput(
                matcher.get_error().splitlines()[0], place="grammar", remedy="Give a regular expression or a schema."
            )
        return GrammarConstraint(matcher, self._prepared.eos_token)


class GrammarConstraint:
    """Lets those tokens through that the grammar allows, see ``local.asked.Constraint``."""

    def __init__(self, matcher: Any, end: int) -> None:
        self._matcher, self._end = matcher, end

    def allow(self, logits: torch.Tensor) -> torch.Tensor:
        """See ``Constraint``."""
        import torch

        allowed = torch.zeros_like(logits, dtype=torch.bool)
        if self._matcher.is_stopped():
            allowed[self._end] = True
        else:
            mask = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
            allowed[: len(mask)] = mask[: len(allowed)].bool()
        return logits.masked_fill(~allowed, float("-inf"))

    def advance(self, token_id: int) -> None:
        """See ``Constraint``."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)


def _matcher() -> Any:
    from rag_tuned_memory.models.extras import import_extra

    return import_extra("llguidance", extra="local").LLMatcher
