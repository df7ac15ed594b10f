"""Log-probabilities of given text, from a server that returns those of its prompts."""

from __future__ import annotations

import anyio.to_thread

from rag_tuned_memory.errors import BackendError, InvalidInput
from rag_tuned_memory.serving.base import Request
from rag_tuned_memory.serving.chat import encode
from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.tgi.wire import Whole


async def prompt_and_ids(folder: ModelFolder, request: Request, completion: str) -> tuple[str, list[int], int]:
    """The text to send, the token ids that it must become, and how many of them are the prompt's.

    Raises:
        InvalidInput: see ``ModelFolder``.
    """
    text = await folder.text(request.messages)
    prompt = await folder.ids(request.messages)
    own = await anyio.to_thread.run_sync(lambda: encode(folder.tokenizer(), completion))
    return text + completion, prompt + own, len(prompt)


def completion_logprobs(answer: Whole, ids: list[int], start: int, place: str) -> tuple[float, ...]:
    """Log-probability of each token from ``start`` on.

    Raises:
        BackendError: the server was not started with REQUEST_LOGPROBS=1.
        InvalidInput: it splits prompt and completion, sent as one text, into other tokens than ``ids``.
    """
    prefill = answer.details.prefill
    if not prefill:
        raise BackendError(
            "the server gives no log-probabilities of given text",
            place=place,
            remedy="Start it with REQUEST_LOGPROBS=1, or score with another backend.",
        )
    if [token.id for token in prefill] != ids:
        raise InvalidInput(
            "this completion cannot be scored on this server: sent as text, it and the prompt become other tokens",
            place=place,
            remedy="Begin it with a letter and leave special tokens' names out, or score with the local backend.",
        )
    return tuple(token.known_logprob for token in prefill[start:])
