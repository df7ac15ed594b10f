"""What a server asks of the local backend: prompts as token ids, and each token of the answer as it comes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Finish = Literal["length", "eos_token", "stop_sequence"]


class Constraint(Protocol):
    """Decides which tokens may come next, as a grammar does. Each answer has its own."""

    def allow(self, logits: Any) -> Any:
        """Logits ``(vocabulary,)`` where those of forbidden tokens are minus infinity."""
        ...

    def advance(self, token_id: int) -> None:
        """The token was chosen."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn; ``temperature`` 0 is greedy. The penalties change the greedy choice too.

    ``top_k`` 0, ``top_p`` 1 and ``typical_p`` 1 leave all tokens in. ``repetition_penalty`` divides the logits of
    tokens that prompt and answer hold (Keskar et al. 2019, arXiv:1909.05858); ``frequency_penalty`` is taken times
    their share of prompt and answer, as TGI does.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    @property
    def plain(self) -> bool:
        """Whether the most likely token of the model's own distribution is the choice."""
        return self.temperature == 0 and self.repetition_penalty == 1.0 and self.frequency_penalty == 0.0


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A prompt of token ids to be continued.

    ``stop`` ends the answer after one of these strings. ``top`` asks for that many most likely tokens at each place.
    ``live`` says that someone is watching it being written, so that it goes first.
    """

    ids: tuple[int, ...]
    adapter: str | None = None
    max_new_tokens: int = 64
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    top: int = 0
    live: bool = False
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have come, with its log-probability after sampling's warping."""

    id: int
    text: str
    logprob: float
    special: bool


@dataclass(frozen=True, slots=True)
class Step(Candidate):
    """A token of the answer. ``text`` is what it added in whole characters, and so can be empty.

    On the last one ``finish`` says why it ended and ``answer`` is the whole text without special tokens, empty where
    it ends inside a character (TGI does so, and clients join the texts of the tokens).
    """

    top: tuple[Candidate, ...] = ()
    finish: Finish | None = None
    answer: str | None = None
