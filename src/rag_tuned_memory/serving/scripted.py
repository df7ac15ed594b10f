"""A test double: a backend that answers from a function instead of a model.

It keeps the contract of ``InferenceBackend`` (order, adapters, errors, streaming, fingerprints), so that code that
uses a backend can be tested in microseconds. It is a double: it computes nothing, and no result of it says anything
about a model.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import anyio

from rag_tuned_memory.errors import AdapterDamaged, AdapterNotLoaded, BackendUnavailable, InvalidInput
from rag_tuned_memory.serving.base import Chunk, Fingerprint, Generation, Request, Token
from rag_tuned_memory.serving.fingerprint import verify

_UNLIKELY = -10.0


class ScriptedBackend:
    """Answers with ``answer(request)``; tokens are the words between spaces.

    ``max_new_tokens`` and ``stop`` are honoured. A word scores log-probability 0 where the scripted answer has the
    same word in the same place, else -10. An adapter is any existing folder. ``requests`` keeps what was asked.
    """

    def __init__(self, answer: Callable[[Request], str], *, base_model: str = "scripted") -> None:
        self._answer = answer
        self._base_model = base_model
        self._adapters: list[str] = []
        self._closed = False
        self.requests: list[Request] = []

    @property
    def base_model(self) -> str:
        """The name given to the constructor."""
        return self._base_model

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """See InferenceBackend."""
        return [self._generate(request) for request in requests]

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """One chunk a word, then the last one with the generation."""
        generation = self._generate(request)
        for word in _words(generation.text):
            yield Chunk(word)
        yield Chunk("", generation)

    async def score(self, request: Request, completions: Sequence[str]) -> list[tuple[float, ...]]:
        """See the class."""
        self._check(request.adapter)
        expected = self._answer(request).split()
        return [
            tuple(
                0.0 if index < len(expected) and expected[index] == word else _UNLIKELY
                for index, word in enumerate(completion.split())
            )
            for completion in completions
        ]

    async def load_adapter(self, name: str, path: Path, fingerprint: Fingerprint | None = None) -> None:
        """See InferenceBackend."""
        self._check(None)
        if name in self._adapters:
            raise InvalidInput(f"an adapter named {name!r} is already loaded", remedy="Unload it, or use a new name.")
        if not await anyio.Path(path).is_dir():
            raise AdapterDamaged("no such folder", place=str(path))
        self._adapters.append(name)
        if fingerprint is not None:
            try:
                await verify(self, name, fingerprint)
            except BaseException:
                self._adapters.remove(name)
                raise

    async def unload_adapter(self, name: str) -> None:
        """See InferenceBackend."""
        self._check(name)
        self._adapters.remove(name)

    async def adapters(self) -> list[str]:
        """Names of the loaded adapters."""
        return list(self._adapters)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of words."""
        return [len(text.split()) for text in texts]

    async def close(self) -> None:
        """Everything but another close raises BackendUnavailable from here on."""
        self._closed = True

    def _check(self, adapter: str | None) -> None:
        if self._closed:
            raise BackendUnavailable("the backend was closed")
        if adapter is not None and adapter not in self._adapters:
            raise AdapterNotLoaded(f"no adapter {adapter!r} is loaded", remedy="Load it with load_adapter.")

    def _generate(self, request: Request) -> Generation:
        self._check(request.adapter)
        self.requests.append(request)
        words = _words(self._answer(request))
        text = "".join(words[: request.max_new_tokens])
        cuts = [text.find(stop) for stop in request.stop if stop in text]
        text = text[: min(cuts)] if cuts else text
        cut = not cuts and len(words) > request.max_new_tokens
        return Generation(
            text=text,
            tokens=tuple(Token(id=0, text=word, logprob=0.0, entropy=0.0) for word in _words(text)),
            prompt_tokens=sum(len(message.content.split()) for message in request.messages),
            finish_reason="length" if cut else "stop",
            adapter=request.adapter,
            seconds=0.0,
        )


def _words(text: str) -> list[str]:
    """Words, each with the white space before it: joined they are the text."""
    return re.findall(r"\s*\S+|\s+\Z", text)
