"""What becomes of the tokens of one job: text and a Generation, or one Step a token."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, Protocol

from rag_tuned_memory.serving.base import Generation, Request, Token
from rag_tuned_memory.serving.local.asked import Candidate, Finish, Sampling, Step, TokenRequest
from rag_tuned_memory.serving.local.batching import Job
from rag_tuned_memory.serving.local.sampling import Sampler
from rag_tuned_memory.serving.local.text import TextStream, TokenTexts

if TYPE_CHECKING:
    from rag_tuned_memory.serving.local.engine import Engine


class Row(Protocol):
    """One job while it is generated."""

    job: Job
    sampler: Sampler | None
    """None: the most likely token is taken."""
    warped_logprobs: bool
    """Whether log-probabilities are of the distribution that the token was drawn from, or of the model's own."""
    top: int
    """How many of the most likely tokens ``take`` wants to know at each place."""

    def take(self, chosen: tuple[int, float, float], top: list[tuple[int, float]]) -> bool:
        """One token: id, log-probability and entropy; and the most likely ones. Returns whether it was the last."""
        ...


def row_of(engine: Engine, job: Job) -> Row:
    """The row for a job's kind of request."""
    if isinstance(job.request, TokenRequest):
        return StepRow(engine, job, job.request)
    return TextRow(engine, job, job.request)


class TextRow:
    """A Request's row: text as it may be shown, and at the end a Generation."""

    warped_logprobs = False
    top = 0

    def __init__(self, engine: Engine, job: Job, request: Request) -> None:
        self.job, self._request = job, request
        self.sampler = None
        if request.temperature > 0 or job.constraint:
            sampling = Sampling(temperature=request.temperature, seed=request.seed)
            self.sampler = Sampler(sampling, job.ids, job.constraint)
        self._ends = engine.model.end_ids
        self._stream = TextStream(engine.tokenizer, request.stop)
        self._tokens: list[Token] = []
        self._text = ""
        self._began = time.perf_counter()

    def take(self, chosen: tuple[int, float, float], top: list[tuple[int, float]]) -> bool:
        """See ``Row``."""
        token_id, logprob, entropy = chosen
        is_end = token_id in self._ends
        piece, shown = ("", "") if is_end else self._stream.push(token_id)
        finish: Literal["stop", "length"] | None = "stop" if is_end or self._stream.stopped else None
        if finish is None and len(self._tokens) + 1 == self._request.max_new_tokens:
            finish = "length"
        if finish:
            rest, shown_rest = self._stream.finish()
            piece, shown = piece + rest, shown + shown_rest
            finish = "stop" if self._stream.stopped else finish
        self._tokens.append(Token(token_id, piece, logprob, entropy))
        self._text += shown
        if shown and self.job.on_text:
            self.job.on_text(shown)
        if finish:
            self.job.report(self._done(finish))
        return finish is not None

    def _done(self, finish: Literal["stop", "length"]) -> Generation:
        return Generation(
            text=self._text,
            tokens=tuple(self._tokens),
            prompt_tokens=len(self.job.prefix) + len(self.job.ids),
            finish_reason=finish,
            adapter=self._request.adapter,
            seconds=time.perf_counter() - self._began,
        )


class StepRow:
    """A TokenRequest's row: each token is reported as it comes, the last one as the job's result."""

    warped_logprobs = True

    def __init__(self, engine: Engine, job: Job, request: TokenRequest) -> None:
        self.job, self._request = job, request
        plain = request.sampling.plain and job.constraint is None
        self.sampler = None if plain else Sampler(request.sampling, request.ids, job.constraint)
        self.top = request.top
        self._ends = engine.model.end_ids
        self._texts = TokenTexts(engine.tokenizer, request.ids)
        self._count = 0

    def take(self, chosen: tuple[int, float, float], top: list[tuple[int, float]]) -> bool:
        """See ``Row``."""
        token_id, logprob, _ = chosen
        text = self._texts.push(token_id)
        self._count += 1
        finish = self._finish(token_id)
        step = Step(
            id=token_id,
            text=text,
            logprob=logprob,
            special=self._texts.is_special(token_id),
            top=tuple(self._candidate(one, value) for one, value in top),
            finish=finish,
            answer=self._texts.answer() if finish else None,
        )
        if finish:
            self.job.report(step)
        elif self.job.on_step:
            self.job.on_step(step)
        return finish is not None

    def _finish(self, token_id: int) -> Finish | None:
        if self._count >= self._request.max_new_tokens:
            return "length"
        if token_id in self._ends:
            return "eos_token"
        return "stop_sequence" if self._texts.ends_with(self._request.stop) else None

    def _candidate(self, token_id: int, logprob: float) -> Candidate:
        return Candidate(token_id, self._texts.of(token_id), logprob, self._texts.is_special(token_id))
