"""What the routes of one server share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import anyio.to_thread

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.base import Message
from rag_tuned_memory.serving.chat import render_pieces
from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.local import LocalBackend
from rag_tuned_memory.serving.server.adapters import Adapters, Unknown
from rag_tuned_memory.serving.server.errors import Refused
from rag_tuned_memory.serving.server.inference import Inference
from rag_tuned_memory.serving.server.metrics import Metrics
from rag_tuned_memory.serving.server.validate import Limits, Validation


@dataclass(frozen=True)
class Options:
    """How a server answers, apart from its model."""

    limits: Limits = field(default_factory=Limits)
    api_key: str | None = field(default=None, repr=False)
    request_logprobs: bool = False
    """Whether ``decoder_input_details`` gives the prompt's log-probabilities, as TGI's REQUEST_LOGPROBS."""
    unknown_adapter: Unknown = "refuse"
    """``base`` answers an unknown adapter from the base model in silence, as TGI does: for tests of clients."""
    allow_origin: str | None = None
    """An origin whose web pages may call, ``*`` for all."""


class Service:
    """A backend with adapters, limits and counters."""

    def __init__(self, backend: LocalBackend, options: Options) -> None:
        self.backend, self.options, self.limits = backend, options, options.limits
        self.folder: ModelFolder = backend.folder
        self.base_id = str(self.folder.path)
        self.adapters = Adapters(backend, self.base_id, options.unknown_adapter)
        self.metrics = Metrics(lambda: backend.load)
        validation = Validation(options.limits, self.folder, self.adapters.by_id)
        self.inference = Inference(
            backend, validation, options.limits, self.metrics, prefill_logprobs=options.request_logprobs
        )
        self.state: Literal["ready", "draining"] = "ready"

    async def templated(self, messages: Sequence[Message]) -> list[tuple[str, list[int]]]:
        """A chat in the model's template, in pieces with their token ids. Raises Refused."""
        try:
            return await anyio.to_thread.run_sync(self._pieces, messages)
        except InvalidInput as error:
            raise Refused(422, f"Template error: {error}", "template_error") from error

    def _pieces(self, messages: Sequence[Message]) -> list[tuple[str, list[int]]]:
        tokenizer = self.folder.tokenizer()
        if not tokenizer.chat_template:
            raise InvalidInput("template not found")
        return render_pieces(tokenizer, messages)
