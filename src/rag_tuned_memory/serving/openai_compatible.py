"""``OpenAICompatible``: an InferenceBackend for any model behind OpenAI's chat completions; the base model only."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal

import anyio

from rag_tuned_memory.errors import AdapterNotLoaded, BackendError, BackendUnavailable, InvalidInput
from rag_tuned_memory.recall.budget import estimate_tokens
from rag_tuned_memory.serving.base import Chunk, Fingerprint, Generation, Request, Token
from rag_tuned_memory.serving.endpoint import Endpoint, Names, end_stream
from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.local.batching import check_request
from rag_tuned_memory.serving.together import together

_NO_ADAPTERS = "Adapters are served by LocalBackend, VllmBackend and TgiBackend."


class OpenAICompatible:
    """Answers with the model called ``model`` at ``url``: a teacher, or who reads what retrieval found.

    Such an endpoint has no adapters and scores no given text. It renders the prompt by its own chat template. What it
    does not tell of an answer's tokens is NaN, see ``generate``. For one event loop; asyncio and trio.

    Args:
        url: the API's root, mostly ending in ``/v1``.
        model: the model's name there.
        key: the API key; none is sent, or taken from the environment, where none is given.
        folder: the model's folder, to count tokens exactly; without it the count is ``recall.budget``'s estimate.
        timeout: seconds that one answer may take, tries and waits included.
        max_retries: further tries after a lost connection, 408, 409, 429 or 5xx.
        max_concurrent: most requests on the way at a time; others wait here.
        names: how the things that a remedy speaks of are called.

    Raises:
        InvalidInput: ``url`` is no http address.
        MissingExtra: the extra ``teacher`` is not installed.
        ModelNotPulled: ``folder`` holds no model.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        *,
        folder: Path | str | None = None,
        timeout: float = 120.0,
        max_retries: int = 2,
        max_concurrent: int = 16,
        names: Names | None = None,
    ) -> None:
        if not model:
            raise InvalidInput("the endpoint's model needs a name")
        self._endpoint = Endpoint(
            url,
            key,
            model=model,
            extra="teacher",
            timeout=timeout,
            max_retries=max_retries,
            names=names or Names(reply="chat completion"),
        )
        self._model, self._timeout = model, timeout
        self._folder = ModelFolder(folder) if folder else None
        self._slots = anyio.Semaphore(max_concurrent)
        self._closed = False

    @property
    def base_model(self) -> str:
        """The model's name; an endpoint tells no revision."""
        return self._model

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answers in the order of the requests. The first error of any request is raised, and the rest dropped.

        As many ``tokens`` as the endpoint counted; it tells neither ids nor probabilities, so those are -1 and NaN,
        and the first one has the whole text.

        Raises:
            InvalidInput, AdapterNotLoaded, PromptTooLong, BackendUnavailable, BackendError: see ``Endpoint.call``.
        """
        for request in requests:
            self._check(request)
        return await together(self._answer, requests)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Text as it comes; the last chunk carries the generation. Closing the iterator closes the connection."""
        self._check(request)
        text, finish, usage = "", None, None

        async def next_piece(parts: Any) -> str | None:
            nonlocal text, finish, usage
            part = await anext(parts, None)
            if part is None:
                return None
            usage = part.usage or usage
            piece = ""
            for choice in part.choices[:1]:
                finish, piece = choice.finish_reason or finish, str(choice.delta.content or "")
            text += piece
            return piece

        async with self._slots:
            began = time.monotonic()
            parts = await self._endpoint.call(lambda: self._create(request, stream=True))
            try:
                left = self._timeout
                while (piece := await self._endpoint.call(lambda: next_piece(parts), seconds=left)) is not None:
                    left = max(0.001, began + self._timeout - time.monotonic())
                    if piece:
                        yield Chunk(piece)
            finally:
                await end_stream(parts)
        if finish is None:
            raise BackendUnavailable("the stream ended before the answer did", place=self._endpoint.place)
        yield Chunk("", _generation(request, text, finish, usage, time.monotonic() - began))

    async def score(self, request: Request, completions: Sequence[str]) -> list[tuple[float, ...]]:
        """Raises BackendError: chat completions tell no probabilities of given text."""
        self._check(request)
        raise BackendError(
            "an OpenAI-compatible chat endpoint cannot score given text",
            place=self._endpoint.place,
            remedy="Use LocalBackend or VllmBackend for it.",
        )

    async def load_adapter(self, name: str, path: Path, fingerprint: Fingerprint | None = None) -> None:
        """Raises BackendError: there are no adapters."""
        raise BackendError(f"no adapter can be loaded here: {name!r}", place=self._endpoint.place, remedy=_NO_ADAPTERS)

    async def unload_adapter(self, name: str) -> None:
        """Raises AdapterNotLoaded: there are none."""
        raise self._no_adapter(name)

    async def adapters(self) -> list[str]:
        """None, always."""
        return []

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """By the model's folder, or estimated."""
        return await self._folder.count(texts) if self._folder else estimate_tokens(texts)

    async def close(self) -> None:
        """Close the connections; everything but another close fails from here on."""
        self._closed = True
        await self._endpoint.close()

    def _check(self, request: Request) -> None:
        check_request(request)
        if request.adapter is not None:
            raise self._no_adapter(request.adapter)
        if not request.messages:
            raise InvalidInput("a prompt needs at least one message")
        if self._closed:
            raise BackendUnavailable("the backend was closed", place=self._endpoint.place)

    def _no_adapter(self, name: str) -> AdapterNotLoaded:
        return AdapterNotLoaded(f"no adapter {name!r} is here", place=self._endpoint.place, remedy=_NO_ADAPTERS)

    async def _answer(self, request: Request) -> Generation:
        async def ask() -> Generation:
            reply = await self._create(request)
            [choice, *_] = reply.choices
            text = str(choice.message.content or "")
            return _generation(request, text, choice.finish_reason, reply.usage, time.monotonic() - began)

        async with self._slots:
            began = time.monotonic()
            return await self._endpoint.call(ask)

    async def _create(self, request: Request, **extra: Any) -> Any:
        if request.pattern:
            raise InvalidInput(
                "an OpenAI-compatible endpoint cannot hold an answer to a regular expression",
                place="pattern",
                remedy="Serve the model by vLLM, TGI or in process.",
            )
        chat: list[Any] = [{"role": message.role, "content": message.content} for message in request.messages]
        given: dict[str, Any] = {"stop": list(request.stop) or None, "seed": request.seed}
        return await self._endpoint.client.chat.completions.create(
            model=self._model,
            messages=chat,
            max_tokens=request.max_new_tokens,
            temperature=request.temperature,
            **{name: value for name, value in given.items() if value is not None},
            **extra,
        )


def _generation(request: Request, text: str, finish: str | None, usage: Any, seconds: float) -> Generation:
    reason: Literal["stop", "length"] = "length" if finish == "length" else "stop"
    prompt = getattr(usage, "prompt_tokens", None)
    count = getattr(usage, "completion_tokens", None)
    count = count if isinstance(count, int) else sum(estimate_tokens([text]))
    return Generation(
        text=text,
        tokens=tuple(Token(-1, "" if index else text, math.nan, math.nan) for index in range(count)),
        prompt_tokens=prompt
        if isinstance(prompt, int)
        else sum(estimate_tokens([m.content for m in request.messages])),
        finish_reason=reason,
        adapter=None,
        seconds=seconds,
    )
