"""``TgiBackend``: an InferenceBackend that asks a text-generation-inference server."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
from tenacity import AsyncRetrying, retry_if_exception_type
from tenacity import wait_random_exponential as random_pauses

from rag_tuned_memory.errors import (
    BackendOverloaded,
    CanaryMismatch,
    InvalidInput,
    PromptTooLong,
)
from rag_tuned_memory.serving.base import Chunk, Fingerprint, Generation, Request
from rag_tuned_memory.serving.fingerprint import verify_by_generating
from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.health import Health
from rag_tuned_memory.serving.held import HeldAdapters
from rag_tuned_memory.serving.local.batching import check_request
from rag_tuned_memory.serving.tgi import scoring, server
from rag_tuned_memory.serving.tgi.answer import Answer
from rag_tuned_memory.serving.tgi.client import TgiClient, TokenStream
from rag_tuned_memory.serving.tgi.grammar import Grammar, RegexGrammar, as_parameter
from rag_tuned_memory.serving.tgi.limits import Budget, TimeLimits
from rag_tuned_memory.serving.tgi.server import ServerInfo
from rag_tuned_memory.serving.tgi.wire import Whole
from rag_tuned_memory.serving.tgi.witness import Witness
from rag_tuned_memory.serving.together import together

T = TypeVar("T")

_LONGEST_PAUSE = 10.0


@dataclass(frozen=True)
class _Process:
    """The server process that answers now."""

    witness: Witness
    info: ServerInfo
    slots: anyio.Semaphore
    """As many requests as it takes at once."""


@dataclass(eq=False)
class _Proof:
    """What proves an adapter, and the process that gave the proof last."""

    name: str
    fingerprint: Fingerprint
    process: Witness | None = None


class TgiBackend:
    """Answers with one TGI process at ``url`` that serves the model of ``folder``.

    TGI reads adapters when it starts, and answers a request for one that it does not have from the base model. So an
    adapter may only be asked for after ``load_adapter`` has proven by its fingerprint that this process serves it, and
    when the process was replaced by another, the proof is made again before the next request. ``url`` must lead to one
    process, not to several behind a balancer.

    To be used from one event loop.

    Args:
        url: the server's root, such as ``http://localhost:8080``.
        folder: the base model as transformers saves it: prompts are rendered with its chat template.
        api_key: the server's API_KEY.
        timeout: what the server may take; see ``TimeLimits``.
        max_tries: how often a request is sent to a server that says it is overloaded.

    Raises:
        InvalidInput: the URL, the key or a limit. ModelNotPulled: ``folder`` holds no model. No connection is made yet.
    """

    def __init__(
        self,
        url: str,
        folder: Path | str,
        *,
        api_key: str | None = None,
        timeout: TimeLimits | None = None,
        max_tries: int = 8,
    ) -> None:
        if max_tries < 1:
            raise InvalidInput(f"max_tries must be at least 1, not {max_tries}")
        self._folder = ModelFolder(folder)
        self._limits = timeout or TimeLimits()
        self._max_tries = max_tries
        self._client = TgiClient(url, api_key, self._limits)
        self._held: HeldAdapters[_Proof] = HeldAdapters()
        self._process: _Process | None = None
        self._meeting = anyio.Lock()
        self._proving = anyio.Lock()

    @property
    def base_model(self) -> str:
        """The folder's name and a short hash of its files; ``check`` compares it with what the server serves."""
        return self._folder.identity

    async def check(self) -> ServerInfo:
        """Meet the server if that was not done yet: its limits, and that it serves the folder's model.

        Every other method does this by itself, and again when the process was replaced by another.

        Raises:
            BackendError: it plainly serves another model, wants another key, or is no TGI server.
            BackendUnavailable: it cannot be reached.
        """
        return (await self._met()).info

    async def health(self) -> Health:
        """Whether the server can answer now. Raises BackendUnavailable after ``close`` only."""
        return await server.health(self._client)

    async def metrics(self) -> str:
        """The server's figures (queue, batches, durations) in Prometheus' text form."""
        return await server.metrics(self._client)

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answers in the order of the requests, which are sent as far at once as the server takes them.

        The first error of any request is raised, and the rest dropped. ``tokens`` has the token that ended the answer
        too (its text is empty). Entropy is NaN: TGI does not tell it. Log-probabilities are of the distribution that
        the tokens were drawn from, that is, after the temperature. ``seconds`` is the wall time of the request.

        Raises:
            InvalidInput, AdapterNotLoaded, PromptTooLong, BackendError, BackendUnavailable: see ``errors``.
            CanaryMismatch: the process was replaced by one that does not serve the adapter.
        """
        for request in requests:
            self._check(request)
        with ExitStack() as stack:
            used = [(request, stack.enter_context(self._using(request))) for request in requests]
            return await together(lambda one: self._whole(*one), used)

    async def generate_one(self, request: Request, *, grammar: Grammar | None = None) -> Generation:
        """As ``generate``; with a ``grammar``, the answer keeps to it as far as ``max_new_tokens`` lets it come.

        Raises:
            BackendError: the server cannot compile the grammar (it gives no reason). InvalidInput: a bad JSON schema.
        """
        self._check(request)
        with self._using(request) as held:
            return await self._whole(request, held, grammar)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Text as it is generated, in whole characters; the last chunk carries the generation.

        Closing the iterator (``aclose``, or cancelling the task) closes the connection, which ends the generation.
        """
        self._check(request)
        with self._using(request) as held:
            async with aclosing(self._chunks(request, held)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def score(self, request: Request, completions: Sequence[str]) -> list[tuple[float, ...]]:
        """Natural-log probability of each token of each completion after the request's prompt.

        Completions are plain text; no end-of-answer token is added. One without text has no tokens. The server must run
        with REQUEST_LOGPROBS=1.

        Raises:
            InvalidInput: as ``generate``; or prompt and completion run together into other tokens.
            BackendError: the server runs without REQUEST_LOGPROBS.
        """
        self._check(request)
        with self._using(request) as held:
            return await together(lambda one: self._score(request, held, one), list(completions))

    async def load_adapter(self, name: str, path: Path, fingerprint: Fingerprint | None = None) -> None:
        """Prove by the fingerprint's greedy answers that the server serves the adapter, and only then hold the name.

        Nothing is loaded: TGI does that when it starts, by its LORA_ADAPTERS, from where it finds the files. ``path``
        is not read.

        Raises:
            InvalidInput: the name is empty or in use, or there is no fingerprint, without which there is no proof.
            CanaryMismatch: the server answers otherwise; it never gets a request for this adapter.
        """
        if not name or not name.strip():
            raise InvalidInput("an adapter needs a name")
        if fingerprint is None:
            raise InvalidInput(
                f"adapter {name!r} has no fingerprint, and TGI answers for a missing adapter from the base model",
                remedy="Give the fingerprint of its manifest; `rtm distil` makes one.",
            )
        proof = _Proof(name, fingerprint)
        with self._held.joining(name, proof):
            process = await self._met()
            await self._prove(name, fingerprint)
            proof.process = process.witness

    async def unload_adapter(self, name: str) -> None:
        """Refuse new requests for the adapter at once, and return when those that run are done.

        The server keeps it until it ends. Raises AdapterNotLoaded.
        """
        with self._held.leaving(name) as idle:
            if idle:
                await idle.wait()

    async def adapters(self) -> list[str]:
        """Names of the adapters that were proven and not unloaded, sorted. The server is not asked."""
        self._client.patience.check_open()
        return self._held.names()

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without a chat template, by the folder's tokenizer."""
        self._client.patience.check_open()
        return await self._folder.count(texts)

    async def close(self) -> None:
        """End running requests, and close all connections; they and later ones fail with BackendUnavailable."""
        await self._client.close()
        if self._process:
            self._process.witness.close()

    def _using(self, request: Request) -> AbstractContextManager[_Proof | None]:
        """What proves the adapter of a request, which cannot leave before the request is done."""
        return nullcontext() if request.adapter is None else self._held.using(request.adapter)

    def _check(self, request: Request) -> None:
        self._client.patience.check_open()
        check_request(request)
        if request.adapter is not None:
            self._held.value(request.adapter)

    async def _whole(self, request: Request, held: _Proof | None, grammar: Grammar | None = None) -> Generation:
        async with aclosing(self._chunks(request, held, grammar)) as chunks:
            async for chunk in chunks:
                if chunk.generation:
                    return chunk.generation
        raise AssertionError("a stream ends with its generation")

    async def _chunks(
        self, request: Request, held: _Proof | None, grammar: Grammar | None = None
    ) -> AsyncGenerator[Chunk, None]:
        budget = Budget(self._limits.total)
        text = await self._folder.text(request.messages)
        answer = Answer(request, self._folder.tokenizer().eos_token_id)  # which the text has loaded
        process, stream = await self._with_tries(lambda: self._begin(request, held, text, grammar, budget), budget)
        try:
            while True:
                shown = answer.take(stream.current.token)
                if answer.stopped or stream.current.last:
                    shown += answer.finish()
                if shown:
                    yield Chunk(shown)
                if answer.stopped or stream.current.last:
                    break
                await stream.advance(budget.left(self._limits.between_tokens))
        finally:
            process.slots.release()
            await stream.close()
        details = stream.current.details
        prompt_tokens = details.input_length if details else None
        if prompt_tokens is None:  # only the last event tells, and we may have stopped before it
            prompt_tokens = len(await self._folder.ids(request.messages))
        reason = details.finish_reason if details else None
        yield Chunk("", answer.generation(reason, prompt_tokens, budget.spent))

    async def _begin(
        self, request: Request, held: _Proof | None, text: str, grammar: Grammar | None, budget: Budget
    ) -> tuple[_Process, TokenStream]:
        """One try: until the first token. The slot of the process is the caller's to release."""
        process = await self._ready(held)
        await self._check_length(request, text, process.info)
        await process.slots.acquire()
        budget.start()
        try:
            parameters = _parameters(request, process.info)
            if asked := grammar or (RegexGrammar(request.pattern) if request.pattern else None):
                parameters["grammar"] = as_parameter(asked)
            return process, await self._client.begin(text, parameters, budget.left(self._limits.first_token))
        except BaseException:
            process.slots.release()
            raise

    async def _score(self, request: Request, held: _Proof | None, completion: str) -> tuple[float, ...]:
        if not completion:
            return ()
        budget = Budget(self._limits.total)
        text, ids, start = await scoring.prompt_and_ids(self._folder, request, completion)

        async def ask() -> Whole:
            process = await self._ready(held)
            async with process.slots:
                budget.start()
                parameters = {"max_new_tokens": 1, "do_sample": False, "adapter_id": request.adapter}
                parameters["decoder_input_details"] = True
                return await self._client.complete(text, parameters, budget.left(math.inf))

        return scoring.completion_logprobs(await self._with_tries(ask, budget), ids, start, self._client.place)

    async def _check_length(self, request: Request, text: str, info: ServerInfo) -> None:
        """Refuse here what the server would, without counting where the number of bytes already says that it fits."""
        room = min(info.max_input_tokens, info.max_total_tokens - request.max_new_tokens)
        if len(text.encode()) < room:  # no token is shorter than a byte
            return
        tokens = len(await self._folder.ids(request.messages))
        if tokens > room:
            raise PromptTooLong(
                f"the prompt has {tokens} tokens; with {request.max_new_tokens} new ones, at most {max(0, room)} fit"
                f" (MAX_INPUT_TOKENS {info.max_input_tokens}, MAX_TOTAL_TOKENS {info.max_total_tokens})",
                place=self._client.place,
                remedy="Shorten the prompt, ask for fewer new tokens, or start the server with higher limits.",
            )

    async def _with_tries(self, function: Callable[[], Awaitable[T]], budget: Budget) -> T:
        """The result of ``function``, tried again with growing, random pauses while the server is overloaded."""
        tries = AsyncRetrying(
            retry=retry_if_exception_type(BackendOverloaded),
            stop=lambda state: state.attempt_number >= self._max_tries or budget.left(math.inf) <= state.upcoming_sleep,
            wait=random_pauses(multiplier=0.2, max=_LONGEST_PAUSE),
            sleep=anyio.sleep,
            reraise=True,
        )

        async def call() -> T:  # tenacity awaits only what it can see to be asynchronous
            return await function()

        return await tries(call)

    async def _ready(self, held: _Proof | None) -> _Process:
        """The process that answers now, seen to serve what is asked for."""
        process = await self._met()
        if held and held.process is not process.witness:
            async with self._proving:
                process = await self._met()
                if held.process is not process.witness:
                    try:
                        await self._prove(held.name, held.fingerprint)
                    except CanaryMismatch:
                        self._held.lose(held.name, held)
                        raise
                    held.process = process.witness
        return process

    async def _met(self) -> _Process:
        """The process that answers now; one that was not met before is asked for its limits and its tokenizer."""
        self._client.patience.check_open()
        if self._process and self._process.witness.alive():
            return self._process
        async with self._meeting:
            if self._process and self._process.witness.alive():
                return self._process
            if self._process:
                self._process.witness.close()
                self._process = None
            # First the witness: whatever is found out after it is of the process that it watches, or of a later one.
            witness = await Witness.of(self._client.url, self._limits.connect, self._client.place)
            try:
                info = await server.info(self._client)
                await server.check_same_model(self._client, info, self._folder)
            except BaseException:
                witness.close()
                raise
            self._process = _Process(witness, info, anyio.Semaphore(info.max_concurrent_requests))
            return self._process

    async def _prove(self, name: str, fingerprint: Fingerprint) -> None:
        await verify_by_generating(_Unheld(self), name, fingerprint)


@dataclass(frozen=True)
class _Unheld:
    """Generates with adapters that are not held yet, to find out whether they may be."""

    backend: TgiBackend

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """See ``Generator``."""
        return await together(lambda one: self.backend._whole(one, None), requests)


def _parameters(request: Request, info: ServerInfo) -> dict[str, Any]:
    """The request as TGI's parameters; None is left out.

    More stop strings than the server takes are kept here: ``Answer`` looks for all of them anyway.
    """
    sampled = request.temperature > 0
    return {
        "max_new_tokens": request.max_new_tokens,
        "adapter_id": request.adapter,
        "do_sample": sampled,
        "temperature": request.temperature if sampled else None,
        "seed": request.seed if sampled else None,
        "stop": list(request.stop[: info.max_stop_sequences]) or None,
    }
