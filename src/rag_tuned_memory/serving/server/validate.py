"""From parameters to a token request: TGI's checks, in its order and with its words."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio.to_thread

from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.local.asked import Sampling, TokenRequest
from rag_tuned_memory.serving.server.errors import validation
from rag_tuned_memory.serving.server.grammar import AskedGrammars
from rag_tuned_memory.serving.server.shapes import Parameters

_CHECKED_NEW_TOKENS = 1024
"""More new tokens than this are not checked against the limit; the answer ends at the limit anyway."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for; the names are those of TGI's options."""

    max_concurrent_requests: int = 128
    max_input_tokens: int = 1023
    max_total_tokens: int = 1024
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_client_batch_size: int = 4
    payload_limit: int = 2_000_000


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued: text, or the token ids of a rendered chat."""

    text: str
    ids: tuple[int, ...] | None = None
    special_tokens: bool = True
    """Whether the tokenizer may add its beginning-of-text token to the text."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A request that can be run. ``seed`` is None where nothing is drawn."""

    request: TokenRequest
    seed: int | None
    seconds: float = field(default=0.0)


class Validation:
    """Checks parameters against limits, adapters and the model's tokenizer."""

    def __init__(self, limits: Limits, folder: ModelFolder, adapter: Callable[[str | None], str | None]) -> None:
        self._limits, self._folder, self._adapter = limits, folder, adapter
        self._grammars = AskedGrammars(folder)

    async def check(self, prompt: Prompt, asked: Parameters, *, live: bool) -> Checked:
        """Raises Refused. ``live`` requests are streams."""
        sampling = self._sampling(asked)
        if len(asked.stop) > self._limits.max_stop_sequences:
            most = self._limits.max_stop_sequences
            raise validation(f"`stop` supports up to {most} stop sequences. Given: {len(asked.stop)}")
        if (asked.best_of or 1) > 1 and asked.seed is not None:
            raise validation("`seed` must not be set when `best_of` > 1")
        if (asked.top_n_tokens or 0) > self._limits.max_top_n_tokens:
            most = self._limits.max_top_n_tokens
            raise validation(f"`top_n_tokens` must be >= 0 and <= {most}. Given: {asked.top_n_tokens}")
        if not prompt.text:
            raise validation("`inputs` cannot be empty")
        ids, new_tokens = await self._length(prompt, asked)
        request = TokenRequest(
            ids=ids,
            adapter=self._adapter(asked.adapter_id),
            max_new_tokens=new_tokens,
            sampling=sampling,
            stop=tuple(one for one in asked.stop if one),
            top=asked.top_n_tokens or 0,
            live=live,
            constraint=await self._grammars.constraint(*asked.grammar) if asked.grammar else None,
        )
        return Checked(request, sampling.seed)

    def check_best_of(self, best_of: int) -> None:
        """Raise Refused for more answers at a time than are allowed."""
        if best_of > self._limits.max_best_of:
            raise validation(f"`best_of` must be > 0 and <= {self._limits.max_best_of}. Given: {best_of}")

    def _sampling(self, asked: Parameters) -> Sampling:
        if (asked.best_of or 1) > 1 and not asked.samples:
            raise validation("you must use sampling when `best_of` is > 1")
        temperature = 1.0 if asked.temperature is None else asked.temperature
        if temperature <= 0:
            raise validation("`temperature` must be strictly positive")
        repetition_penalty = 1.0 if asked.repetition_penalty is None else asked.repetition_penalty
        if repetition_penalty <= 0:
            raise validation("`repetition_penalty` must be strictly positive")
        if not -2 <= (asked.frequency_penalty or 0) <= 2:
            raise validation("`frequency_penalty` must be >= -2.0 and <= 2.0")
        for name, share in (("top_p", asked.top_p), ("typical_p", asked.typical_p)):
            if share is not None and not 0 < share < 1:
                raise validation(f"`{name}` must be > 0.0 and < 1.0")
        if asked.top_k is not None and asked.top_k <= 0:
            raise validation("`top_k` must be strictly positive")
        if asked.max_new_tokens == 0:
            raise validation("`max_new_tokens` must be strictly positive")
        if asked.watermark:
            raise validation("`watermark` is not supported by this server")
        return Sampling(
            temperature=temperature if asked.samples else 0.0,
            top_k=asked.top_k or 0,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            typical_p=1.0 if asked.typical_p is None else asked.typical_p,
            repetition_penalty=repetition_penalty,
            frequency_penalty=asked.frequency_penalty or 0.0,
            seed=(secrets.randbits(63) if asked.seed is None else asked.seed) if asked.samples else None,
        )

    async def _length(self, prompt: Prompt, asked: Parameters) -> tuple[tuple[int, ...], int]:
        """The prompt's token ids and how many may be generated."""
        most, most_input = self._limits.max_total_tokens, self._limits.max_input_tokens
        if asked.truncate is not None and not 0 < asked.truncate <= most_input:
            raise validation(
                f"`truncate` must be strictly positive and less than {most_input}. Given: {asked.truncate}"
            )
        ids = await encode(self._folder, prompt)
        if asked.truncate is not None:
            ids = ids[-asked.truncate :]
        wanted = max(most - len(ids), 0) if asked.max_new_tokens is None else asked.max_new_tokens
        checked = min(wanted, _CHECKED_NEW_TOKENS)
        if len(ids) + checked > most:
            raise validation(
                f"`inputs` tokens + `max_new_tokens` must be <= {most}. "
                f"Given: {len(ids)} `inputs` tokens and {checked} `max_new_tokens`"
            )
        if len(ids) > most_input:
            raise validation(f"`inputs` must have less than {most_input} tokens. Given: {len(ids)}")
        return ids, max(min(wanted, most - len(ids)), 1)


async def encode(folder: ModelFolder, prompt: Prompt) -> tuple[int, ...]:
    """The prompt's token ids. In plain text, control tokens are what their names say, as TGI has it."""
    if prompt.ids is not None:
        return prompt.ids

    def ids() -> tuple[int, ...]:
        return tuple(folder.tokenizer()(prompt.text, add_special_tokens=prompt.special_tokens)["input_ids"])

    return await anyio.to_thread.run_sync(ids)
