"""Requests to ``/v1/completions``: prompts as token ids, answers, streams and scores."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from rag_tuned_memory.errors import AdapterNotLoaded, BackendError, BackendUnavailable, PromptTooLong
from rag_tuned_memory.serving.base import Chunk, Generation, Request
from rag_tuned_memory.serving.chat import encode
from rag_tuned_memory.serving.endpoint import end_stream, refusal
from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.together import together
from rag_tuned_memory.serving.vllm.answer import Answer, steps
from rag_tuned_memory.serving.vllm.apart import Apart
from rag_tuned_memory.serving.vllm.server import Listing, VllmServer

T = TypeVar("T")
_LAST_EVENT_SECONDS = 1.0

NEUTRAL: dict[str, Any] = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
NEUTRAL_EXTRA: dict[str, Any] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Without these a server takes the base model's ``generation_config.json``: some penalise repetition even in greedy
answers, and the adapter was judged without that."""


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """An adapter on the server."""

    path: str
    """Where the server loaded it from."""
    salt: str
    """Keeps its prefix cache apart from that of other weights that the same name and path may have had."""


class Completions:
    """Asks a server. ``live`` is the adapter of a request that names one: to know that it may is the caller's part.

    ``lost`` is called when the server does not know such an adapter any more.
    """

    def __init__(
        self,
        server: VllmServer,
        folder: ModelFolder,
        *,
        model: str | None,
        top_logprobs: int,
        timeout: float,
        max_concurrent: int,
        apart: Apart,
        lost: Callable[[str, Live], None],
    ) -> None:
        self._server, self._folder, self._lost = server, folder, lost
        self._model, self._top, self._timeout = model, top_logprobs, timeout
        self._slots, self._apart = anyio.Semaphore(max_concurrent), apart
        self._listing: Listing | None = None

    async def answer(self, request: Request, live: Live | None, *, alone: bool = False) -> Generation:
        """One answer; ``alone``: no request of the other kind is beside it. Raises as ``VllmBackend.generate``."""
        answer, body = await self._prepared(request, live)

        async def ask() -> Generation:
            reply: Any = await self._server.endpoint.client.completions.create(**body)
            answer.take(reply.choices[0])
            return answer.done(time.monotonic() - began)

        async with self._apart.turn(base=live is None, alone=alone), self._slots:
            began = time.monotonic()
            return await self._call(ask, request, live)

    async def stream(self, request: Request, live: Live | None) -> AsyncGenerator[Chunk]:
        """One answer as it comes; closing the iterator closes the connection."""
        answer, body = await self._prepared(request, live)

        async def next_text(parts: Any) -> str:
            part = await anext(parts, None)
            if part is None:
                raise BackendUnavailable("the stream ended before the answer did", place=self._server.place)
            return "".join(answer.take(choice) for choice in part.choices)

        async with self._apart.turn(base=live is None), self._slots:
            began = time.monotonic()
            create = self._server.endpoint.client.completions.create
            parts = await self._call(lambda: create(**body, stream=True), request, live)
            try:
                while answer.finish is None:
                    left = max(0.001, began + self._timeout - time.monotonic())
                    if text := await self._call(lambda: next_text(parts), request, live, seconds=left):
                        yield Chunk(text)
                # Read to its end, the connection can be used again; nothing is lost where that fails.
                with contextlib.suppress(BackendError):
                    await self._server.endpoint.call(lambda: anext(parts, None), seconds=_LAST_EVENT_SECONDS)
            finally:
                await end_stream(parts)
        yield Chunk("", answer.done(time.monotonic() - began))

    async def scores(self, request: Request, texts: Sequence[str], live: Live | None) -> list[tuple[float, ...]]:
        """Log-probabilities of each text's tokens after the prompt. Raises what ``VllmBackend.score`` raises."""
        ids = await self._folder.ids(request.messages)
        tokenizer = await anyio.to_thread.run_sync(self._folder.tokenizer)
        answers = await anyio.to_thread.run_sync(lambda: [encode(tokenizer, text) for text in texts])
        # Where the server only scores, it still wants room for one token.
        base = await self._fitting(len(ids), max(map(len, answers), default=0) + 1)

        async def one(answer: list[int]) -> tuple[float, ...]:
            if not answer:
                return ()
            given = [*ids, *answer]
            body = self._body(request.adapter or base, given, live)

            async def ask() -> tuple[float, ...]:
                create = self._server.endpoint.client.completions.create
                reply: Any = await create(**body, max_tokens=0, echo=True, logprobs=0)
                found = steps(reply.choices[0].logprobs)
                values = [step.logprob for step in found[len(ids) :] if step.logprob is not None]
                if [step.id for step in found] != given or len(values) != len(answer):
                    raise ValueError("other tokens came back than were sent")
                return tuple(values)

            async with self._apart.turn(base=live is None), self._slots:
                return await self._call(ask, request, live)

        return await together(one, answers)

    async def _prepared(self, request: Request, live: Live | None) -> tuple[Answer, dict[str, Any]]:
        """What collects the answer, and the body of the request."""
        ids = await self._folder.ids(request.messages)
        base = await self._fitting(len(ids), request.max_new_tokens)
        tokenizer = await anyio.to_thread.run_sync(self._folder.tokenizer)
        body = self._body(request.adapter or base, ids, live) | {
            "max_tokens": request.max_new_tokens,
            "logprobs": self._top,
            "temperature": request.temperature,
            **NEUTRAL,
        }
        if request.seed is not None:
            body["seed"] = request.seed
        if request.stop:
            body["stop"] = list(request.stop)
        if request.pattern:
            body["extra_body"]["structured_outputs"] = {"regex": request.pattern}
        return Answer(request, tokenizer, len(ids)), body

    def _body(self, model: str, ids: list[int], live: Live | None) -> dict[str, Any]:
        extra = {**NEUTRAL_EXTRA, "return_tokens_as_token_ids": True}
        if live is not None:
            extra["cache_salt"] = live.salt
        return {"model": model, "prompt": ids, "extra_body": extra}

    async def _fitting(self, prompt: int, answer: int) -> str:
        """The base model's name on the server. Raises PromptTooLong where prompt and answer exceed its context."""
        if self._listing is None:
            self._listing = await self._server.listing()
        bases, context = self._listing.bases, self._listing.context
        if not bases or (self._model and self._model not in bases):
            self._listing = None
            raise BackendError(
                f"the server serves {', '.join(bases) or 'nothing'}" + (f", not {self._model}" if self._model else ""),
                place=self._server.place,
                remedy="Give the name that it was started with (--served-model-name) as model.",
            )
        if context is not None and prompt + answer > context:
            raise PromptTooLong(
                f"the prompt has {prompt} tokens and the answer up to {answer}, together more than the server's "
                f"context of {context}",
                place=self._server.place,
                remedy=f"Shorten the prompt to {max(context - answer, 0)} tokens, e.g. by a lower recall budget, or "
                "ask for a shorter answer.",
            )
        return self._model or bases[0]

    async def _call(
        self,
        operation: Callable[[], Awaitable[T]],
        request: Request,
        live: Live | None,
        seconds: float | None = None,
    ) -> T:
        """``Endpoint.call``, where a model that the server does not know is an adapter that it lost."""
        try:
            return await self._server.endpoint.call(operation, seconds=seconds)
        except BackendError as error:
            if refusal(error)[0] != 404:
                raise
            self._listing = None
            if request.adapter is None or live is None:
                raise
            self._lost(request.adapter, live)
            raise AdapterNotLoaded(
                f"the server does not have the adapter {request.adapter!r} any more: it was restarted, or someone "
                "unloaded it",
                place=self._server.place,
                remedy="Load it again.",
            ) from error
