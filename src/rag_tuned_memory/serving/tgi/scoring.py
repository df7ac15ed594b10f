"""Log-probabilities of given text, from a server that returns those of its prompts."""

from __future__ import annotations

import anyio.to_thread
from huggingface_hub import TextGenerationOutput

from rag_tuned_memory.errors import BackendError, InvalidInput
from rag_tuned_memory.serving.base import Request
from rag_tuned_memory.serving.chat import encode
from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.tgi.answer import logprob_of
from rag_tuned_memory.serving.tgi.failures import protocol_error


async def prompt_and_ids(folder: ModelFolder, request: Request, completion: str) -> tuple[str, list[int], int]:
    """The text to send, the token ids that it must become, and how many of them are the prompt's.

    Raises:
        InvalidInput: see ``ModelFolder``.
    """
    text = await folder.text(request.messages)
    prompt = await folder.ids(request.messages)
    own = await anyio.to_thread.run_sync(lambda: encode(folder.tokenizer(), completion))
    return text + completion, prompt + own, len(prompt)


def completion_logprobs(answer: TextGenerationOutput, ids: list[int], start: int, place: str) -> tuple[float, ...]:
    """Log-probability of each token from ``start`` on.

    Raises:
        BackendError: the server was not started with REQUEST_LOGPROBS=1.
        InvalidInput: it splits prompt and completion, sent as one text, into other tokens than ``ids``.
    """
    prefill = answer.details.prefill if answer.details else None
    if not prefill:
        raise BackendError(
            "the server gives no log-probabilities of given text",
            place=place,
            remedy="Start it with REQUEST_LOGPROBS=1, or score with another backend.",
        )
    if not isinstance(prefill, list):
        raise protocol_error("details.prefill is no list", place)
    if [getattr(token, "id", None) for token in prefill] != ids:
        raise InvalidInput(
            "this completion cannot be scored on this server: sent as text, it and the prompt become other tokens",
            place=place,
            remedy="Begin it with a letter and leave special tokens' names out, or score with the local backend.",
        )
    return tuple(logprob_of(token) for token in prefill[start:])
