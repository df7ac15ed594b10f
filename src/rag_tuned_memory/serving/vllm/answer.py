"""From vLLM's answers to ours: token ids and log-probabilities as it tells them, text as the local backend makes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from rag_tuned_memory.errors import BackendUnavailable
from rag_tuned_memory.serving.base import Generation, Request, Token
from rag_tuned_memory.serving.local.text import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PREFIX = "token_id:"


@dataclass(frozen=True, slots=True)
class Step:
    """One token of a reply; ``logprob`` is None for the first token of a prompt."""

    id: int
    logprob: float | None
    entropy: float


def steps(logprobs: Any) -> list[Step]:
    """The tokens of a reply that was asked for with ``return_tokens_as_token_ids``.

    Raises:
        AttributeError, TypeError, ValueError: it has another form.
    """
    tops = logprobs.top_logprobs or [None] * len(logprobs.tokens)
    rows = zip(logprobs.tokens, logprobs.token_logprobs, tops, strict=True)
    return [Step(_id(token), None if value is None else _finite(value), entropy(top)) for token, value, top in rows]


def _id(token: str) -> int:
    if not token.startswith(_PREFIX):
        raise ValueError(f"{token!r} is no token id")
    return int(token[len(_PREFIX) :])


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("a log-probability is not finite")
    return float(value)


def entropy(top: Mapping[str, float] | None) -> float:
    """A lower bound of a distribution's entropy in nats, from its likeliest tokens; NaN without any.

    All that they leave counts as one further token. Of a sharp distribution that is nearly exact.
    """
    if not top:
        return math.nan
    shares = [math.exp(value) for value in top.values()]
    rest = 1 - sum(shares)
    return -sum(share * math.log(share) for share in [*shares, rest] if share > 0)


class Answer:
    """One answer while its tokens come.

    Text is decoded here: in whole characters, and never beyond a stop string. So it is what the local backend makes of
    the same tokens.
    """

    def __init__(self, request: Request, tokenizer: PreTrainedTokenizerBase, prompt_tokens: int) -> None:
        self._request, self._prompt_tokens = request, prompt_tokens
        self._stream = TextStream(tokenizer, request.stop)
        self._tokens: list[Token] = []
        self._text = ""
        self.finish: Literal["stop", "length"] | None = None

    def take(self, choice: Any) -> str:
        """Take a reply's choice, or a piece of one; returns the text that may be shown now.

        Raises:
            BackendUnavailable: the server broke the answer off.
            AttributeError, TypeError, ValueError: it has another form.
        """
        reason = choice.finish_reason
        if reason not in (None, "stop", "length"):
            raise BackendUnavailable(f"the server broke the answer off ({reason})", remedy="Try again later.")
        found = steps(choice.logprobs) if choice.logprobs else []
        # A stop string is named by stop_reason; without one, the last token is the one that ends an answer.
        ends = reason == "stop" and not isinstance(getattr(choice, "stop_reason", None), str)
        shown = ""
        for index, step in enumerate(found):
            if self.finish:
                break
            shown += self._push(step, is_end=ends and index == len(found) - 1)
        if reason and not self.finish:
            shown += self._end(reason)
        self._text += shown
        return shown

    def done(self, seconds: float) -> Generation:
        """The finished answer. Raises ValueError: it has no end, or no tokens."""
        if self.finish is None or not self._tokens:
            raise ValueError("the answer has no end, or no tokens")
        return Generation(
            text=self._text,
            tokens=tuple(self._tokens),
            prompt_tokens=self._prompt_tokens,
            finish_reason=self.finish,
            adapter=self._request.adapter,
            seconds=seconds,
        )

    def _push(self, step: Step, *, is_end: bool) -> str:
        if step.logprob is None:
            raise ValueError("a token has no log-probability")
        piece, shown = ("", "") if is_end else self._stream.push(step.id)
        self._tokens.append(Token(step.id, piece, step.logprob, step.entropy))
        return shown + (self._end("stop") if self._stream.stopped else "")

    def _end(self, reason: Literal["stop", "length"]) -> str:
        rest, shown = self._stream.finish()
        if rest:
            self._tokens[-1] = replace(self._tokens[-1], text=self._tokens[-1].text + rest)
        self.finish = "stop" if self._stream.stopped else reason
        return shown
