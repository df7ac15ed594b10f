"""From a server's tokens to an answer."""

from __future__ import annotations

import math
from typing import Literal

from rag_tuned_memory.serving.base import Generation, Request, Token
from rag_tuned_memory.serving.stopping import StopStrings
from rag_tuned_memory.serving.tgi.wire import WireToken


class Answer:
    """One answer as its tokens come.

    The text is what the tokens say, joined: TGI's ``generated_text`` is the same, but holds the stop string, and is
    empty where the answer ends inside a character. Special tokens, the one that ends the answer too (``end_id``), have
    no text.
    """

    def __init__(self, request: Request, end_id: int | None) -> None:
        self._request = request
        self._end_id = end_id
        self._stop = StopStrings(request.stop)
        self._tokens: list[Token] = []
        self._text = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string came, so that nothing more is to be taken."""
        return self._stop.found

    def take(self, token: WireToken) -> str:
        """Take one token; returns the text that may be shown now."""
        text = "" if token.special else token.text
        self._tokens.append(Token(token.id, text, token.known_logprob, math.nan))
        return self._show(self._stop.push(text))

    def finish(self) -> str:
        """No more tokens come: returns the rest of the text."""
        return self._show(self._stop.finish())

    def generation(self, reason: str | None, prompt_tokens: int, seconds: float) -> Generation:
        """The finished answer; ``reason`` is TGI's. Where it gave none, the number of tokens tells."""
        return Generation(
            text=self._text,
            tokens=tuple(self._tokens),
            prompt_tokens=prompt_tokens,
            finish_reason=self._finish_reason(reason),
            adapter=self._request.adapter,
            seconds=seconds,
        )

    def _finish_reason(self, reason: str | None) -> Literal["stop", "length"]:
        # An end token in the last place that there is counts as "length" on TGI, and as the end everywhere else.
        if self.stopped or self._tokens[-1].id == self._end_id:
            return "stop"
        if reason is None:
            return "length" if len(self._tokens) >= self._request.max_new_tokens else "stop"
        return "length" if reason == "length" else "stop"

    def _show(self, text: str) -> str:
        self._text += text
        return text
