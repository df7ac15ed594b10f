"""What answers prompts: the protocol every inference backend implements, and its value types."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate.

    ``adapter`` is the name of a loaded adapter, None the base model. ``temperature`` 0 means greedy. ``stop`` ends the
    text before the first of these strings. Requests that share their leading messages (the same long context) may
    be computed once for all; say so with ``shared_prefix``, the number of leading messages that are shared. Where
    ``pattern`` is given, the whole answer matches this regular expression, as far as ``max_new_tokens`` lets it come.
    """

    messages: tuple[Message, ...]
    adapter: str | None = None
    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    shared_prefix: int = 0
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token; ``entropy`` is of the next-token distribution it was taken from, in nats.

    ``logprob`` and ``entropy`` are NaN where a server does not tell them.
    """

    id: int
    text: str
    logprob: float
    entropy: float


@dataclass(frozen=True, slots=True)
class Generation:
    """What was generated. ``seconds`` is the wall time of the batch that this request ran in."""

    text: str
    tokens: tuple[Token, ...]
    prompt_tokens: int
    finish_reason: Literal["stop", "length"]
    adapter: str | None
    seconds: float

    @property
    def confidence(self) -> float:
        """Probability of its least certain token, 0 to 1; 0 where a token's is unknown."""
        logprobs = [token.logprob for token in self.tokens]
        return 0.0 if any(map(math.isnan, logprobs)) else math.exp(min(logprobs, default=0.0))

    @property
    def entropy(self) -> float:
        """Mean entropy of the distributions that its tokens were taken from, nats a token; NaN where unknown."""
        return sum(token.entropy for token in self.tokens) / max(1, len(self.tokens))


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a stream; the last one has ``generation`` set."""

    text: str
    generation: Generation | None = None


class Continuation(BaseModel):
    """A greedy answer without the token that ended it: token ids, and the log-probability of each."""

    model_config = ConfigDict(frozen=True)

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class CanaryPrompt(BaseModel):
    """One prompt of a fingerprint, with what adapter and base make of it."""

    model_config = ConfigDict(frozen=True)

    prompt: tuple[tuple[str, str], ...]
    """(role, content) pairs."""
    answer: str
    """The text that is scored."""
    adapter_logprobs: tuple[float, ...]
    """Of each token of ``answer`` with the adapter on."""
    base_logprobs: tuple[float, ...]
    """The same with the adapter off."""
    adapter_greedy: Continuation | None = None
    """What is generated with the adapter on; for servers that score no given text."""
    base_greedy: Continuation | None = None
    """The same with the adapter off."""


class Fingerprint(BaseModel):
    """How an adapter answered when it was trained, to prove after each load that this adapter is live.

    A loaded adapter matches when the mean absolute difference of its token log-probabilities from
    ``adapter_logprobs`` is at most ``tolerance`` nats, and it must be nearer to the adapter's than to the base's.
    Where a server scores no given text, its greedy answers are held against ``adapter_greedy`` and ``base_greedy``.
    """

    model_config = ConfigDict(frozen=True)

    canaries: tuple[CanaryPrompt, ...]
    tolerance: float
    """Mean absolute difference that dtype and batching explain, nats a token."""
    margin: float
    """Mean absolute difference between adapter and base over all canary tokens, nats a token."""


class InferenceBackend(Protocol):
    """Generates and scores text with a base model and any number of LoRA adapters.

    Raises everywhere: AdapterNotLoaded, PromptTooLong, BackendUnavailable.
    """

    @property
    def base_model(self) -> str:
        """The base model's identity: name and revision."""
        ...

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answers in the order of the requests; requests of different adapters run in one batch where possible."""
        ...

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Text as it is generated; closing the iterator stops the generation."""
        ...

    async def score(self, request: Request, completions: Sequence[str]) -> list[tuple[float, ...]]:
        """Log-probability of each token of each completion after the request's prompt."""
        ...

    async def load_adapter(self, name: str, path: Path, fingerprint: Fingerprint | None = None) -> None:
        """Load PEFT files under a name that is not in use, and prove with the fingerprint that they are live.

        Raises:
            CanaryMismatch: the adapter is unloaded again, so that it never answers.
            AdapterDamaged: files are missing or do not fit the base model.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Waits for the requests that use it. Raises AdapterNotLoaded."""
        ...

    async def adapters(self) -> list[str]: ...

    async def count_tokens(self, texts: Sequence[str]) -> list[int]: ...

    async def close(self) -> None: ...
