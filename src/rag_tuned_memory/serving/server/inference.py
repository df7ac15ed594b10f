"""One request from its parameters to its tokens: permits, checks, generation, counters."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field

import anyio

from rag_tuned_memory.errors import RagTunedMemoryError
from rag_tuned_memory.serving.local import LocalBackend
from rag_tuned_memory.serving.local.asked import Finish, Step
from rag_tuned_memory.serving.server.errors import Refused, of_backend, overloaded
from rag_tuned_memory.serving.server.metrics import Metrics
from rag_tuned_memory.serving.server.shapes import Parameters
from rag_tuned_memory.serving.server.validate import Checked, Limits, Prompt, Validation


@dataclass
class Running:
    """A request that runs: what was checked, its tokens to be iterated, and its times."""

    prompt: Prompt
    checked: Checked
    steps: AsyncIterator[Step]
    began: float
    validated: float


@dataclass(frozen=True)
class Answered:
    """A whole answer; ``prefill`` has the log-probability of each token of the prompt but the first."""

    prompt: Prompt
    checked: Checked
    steps: tuple[Step, ...]
    prefill: tuple[float, ...] | None
    began: float
    validated: float
    ended: float = field(default_factory=time.perf_counter)

    @property
    def text(self) -> str:
        """The answer's text."""
        return self.steps[-1].answer or ""

    @property
    def finish(self) -> Finish:
        """Why it ended."""
        assert self.steps[-1].finish is not None
        return self.steps[-1].finish

    @property
    def mean_logprob(self) -> float:
        """Of its tokens."""
        return sum(step.logprob for step in self.steps) / len(self.steps)


class Inference:
    """Runs requests on the backend, so many at a time. Works on asyncio and trio."""

    def __init__(
        self,
        backend: LocalBackend,
        validation: Validation,
        limits: Limits,
        metrics: Metrics,
        *,
        prefill_logprobs: bool,
    ) -> None:
        self._backend, self._validation, self._limits, self.metrics = backend, validation, limits, metrics
        self._prefill_logprobs = prefill_logprobs
        self.running = 0

    def begin(self, prompt: Prompt, asked: Parameters, *, live: bool = False) -> AbstractAsyncContextManager[Running]:
        """A request that runs within the context. Raises Refused, within it too."""
        return self._begin(prompt, asked, live=live)

    @asynccontextmanager
    async def _begin(self, prompt: Prompt, asked: Parameters, *, live: bool) -> AsyncIterator[Running]:
        began = time.perf_counter()
        self.metrics.requests.inc()
        # Before any check, as TGI has it: who is over the limit costs nothing.
        if self.running >= self._limits.max_concurrent_requests:
            self.metrics.failures.labels(err="overloaded").inc()
            raise overloaded()
        self.running += 1
        try:
            checked = await self._validation.check(prompt, asked, live=live)
            validated = time.perf_counter()
            async with aclosing(self._steps(checked, began, validated)) as steps:
                yield Running(prompt, checked, steps, began, validated)
        except anyio.get_cancelled_exc_class():
            self.metrics.failures.labels(err="dropped").inc()
            raise
        except RagTunedMemoryError as error:
            refused = of_backend(error)
            self.metrics.failures.labels(err=refused.error_type).inc()
            raise refused from error
        except Refused as refused:
            self.metrics.failures.labels(err=refused.error_type).inc()
            raise
        finally:
            self.running -= 1

    async def answer(self, prompt: Prompt, asked: Parameters) -> Answered:
        """A whole answer. Raises Refused."""
        async with self.begin(prompt, asked) as running:
            prefill = None
            if asked.decoder_input_details and self._prefill_logprobs:
                request = running.checked.request
                prefill = await self._backend.score_ids(request.ids, request.adapter)
            steps = tuple([step async for step in running.steps])
            return Answered(prompt, running.checked, steps, prefill, running.began, running.validated)

    async def best_of(self, prompt: Prompt, asked: Parameters, count: int) -> list[Answered]:
        """So many sampled answers, the likeliest first. Raises Refused."""
        self._validation.check_best_of(count)
        answers: list[Answered] = []
        refused: list[Refused] = []

        async def one() -> None:
            try:
                answers.append(await self.answer(prompt, asked))
            except Refused as error:
                refused.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(one)
        if refused:
            raise refused[0]
        return sorted(answers, key=lambda answer: -answer.mean_logprob)

    async def _steps(self, checked: Checked, began: float, validated: float) -> AsyncGenerator[Step, None]:
        metrics, request = self.metrics, checked.request
        metrics.validation.observe(validated - began)
        metrics.input_length.observe(len(request.ids))
        metrics.new_tokens.observe(request.max_new_tokens)
        count = 0
        async with aclosing(self._backend.steps(request)) as steps:
            async for step in steps:
                count += 1
                if step.finish:  # counted before it is told, so that who has the answer finds it counted
                    now = time.perf_counter()
                    metrics.duration.observe(now - began)
                    metrics.inference.observe(now - validated)
                    metrics.token.observe((now - validated) / count)
                    metrics.generated.observe(count)
                    metrics.successes.inc()
                yield step
