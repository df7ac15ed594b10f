"""Answers that follow a JSON schema or a regular expression, by llguidance."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.server.errors import failed, validation
from rag_tuned_memory.serving.server.shapes import compact
from rag_tuned_memory.serving.server.wire_json import BadJson, anything, read

if TYPE_CHECKING:
    import torch

_NO_BLANKS = {"x-guidance": {"whitespace_flexible": False}}
"""A small model would fill its budget with blanks."""


class Grammars:
    """Makes constraints for one tokenizer, which is prepared when the first is asked for."""

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._tokenizer: Any = None

    async def constraint(self, kind: str, value: Any) -> GrammarConstraint:
        """A fresh constraint for one answer. Raises Refused for a grammar that is none."""
        return await anyio.to_thread.run_sync(self._constraint, kind, value)

    def _constraint(self, kind: str, value: Any) -> GrammarConstraint:
        from llguidance import LLMatcher

        if kind == "regex":
            grammar = LLMatcher.grammar_from_regex(value)
        else:
            schema = _schema(value["schema"] if kind == "json_schema" else value)
            grammar = LLMatcher.grammar_from_json_schema(compact({**_NO_BLANKS, **_closed(schema)}))
        tokenizer = self._prepared()
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().splitlines()[0]
            # TGI finds a bad expression only when it generates, and a bad schema when it validates.
            raise failed(reason) if kind == "regex" else validation(f"grammar is not valid: {reason}")
        return GrammarConstraint(matcher, tokenizer.eos_token)

    def _prepared(self) -> Any:
        with self._lock:
            if self._tokenizer is None:
                from llguidance.hf import from_tokenizer

                self._tokenizer = from_tokenizer(self._folder.tokenizer())
            return self._tokenizer


def _schema(given: Any) -> dict[str, Any]:
    """A JSON schema, that may come as text. Raises Refused."""
    schema = given
    if isinstance(given, str):
        try:
            schema = read(given.encode(), anything)
        except BadJson as error:
            raise validation(f"grammar is not valid: {error}") from None
    if not isinstance(schema, dict):
        raise validation("grammar is not valid: it must be a JSON schema")
    if "properties" not in schema:
        raise validation("grammar is not valid: Grammar must have a 'properties' field")
    return schema


def _closed(schema: Any) -> Any:
    """The schema with objects that have the properties named and no others, which is how TGI reads one."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **closed} if isinstance(schema.get("properties"), dict) else closed


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
