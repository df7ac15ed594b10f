"""The routes that ask about the server: health, limits, counters, models, tokens."""

from __future__ import annotations

from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from rag_tuned_memory.errors import RagTunedMemoryError
from rag_tuned_memory.serving.server.bodies import read_body
from rag_tuned_memory.serving.server.errors import Refused, json_response, validation
from rag_tuned_memory.serving.server.service import Service
from rag_tuned_memory.serving.server.shapes import CHAT, GENERATE

NAME = "rag-tuned-memory serve-model"


class InformationRoutes:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, request: Request) -> Response:
        """Empty when the model's thread answers; it waits for the step that runs."""
        try:
            await self._service.backend.adapters()
            await self._service.backend.start()
        except RagTunedMemoryError:
            return json_response({"error": "unhealthy", "error_type": "healthcheck"}, 503)
        return Response()

    async def info(self, request: Request) -> Response:
        """TGI's members, and under ``local`` what this server has to say."""
        from importlib.metadata import version

        service, limits = self._service, self._service.limits
        waiting, running = service.backend.load
        identity = await anyio.to_thread.run_sync(lambda: service.folder.identity)
        return json_response(
            {
                "model_id": service.base_id,
                "model_sha": identity.rpartition("@")[2],
                "model_pipeline_tag": None,
                "max_concurrent_requests": limits.max_concurrent_requests,
                "max_best_of": limits.max_best_of,
                "max_stop_sequences": limits.max_stop_sequences,
                "max_input_tokens": limits.max_input_tokens,
                "max_total_tokens": limits.max_total_tokens,
                "validation_workers": 1,
                "max_client_batch_size": limits.max_client_batch_size,
                "router": NAME,
                "version": version("rag-tuned-memory"),
                "sha": None,
                "docker_label": None,
                "local": {
                    "for_production": False,
                    "state": service.state,
                    "requests": service.inference.running,
                    "waiting": waiting,
                    "running": running,
                    "adapters": service.adapters.paths,
                    "unknown_adapter": service.options.unknown_adapter,
                },
            }
        )

    async def metrics(self, request: Request) -> Response:
        """Prometheus text."""
        return PlainTextResponse(self._service.metrics.text())

    async def models(self, request: Request) -> Response:
        """The base model as TGI lists it, and adapters as vLLM does, with the path as root and the base as parent."""
        base, most = self._service.base_id, self._service.limits.max_total_tokens
        cards = [_card(base, base, root=base, parent=None, most=most)]
        cards += [
            _card(name, base, root=path, parent=base, most=most) for name, path in self._service.adapters.paths.items()
        ]
        return json_response({"object": "list", "data": cards})

    async def tokenize(self, request: Request) -> Response:
        """The tokens of ``inputs`` with their places in it."""
        found = await read_body(request, GENERATE, limit=self._service.limits.payload_limit)
        text = found["inputs"]
        if not text:
            return validation("`inputs` cannot be empty").response()
        special = found.get("add_special_tokens", True)
        return json_response(await anyio.to_thread.run_sync(lambda: self._tokens(text, special=special)))

    async def chat_tokenize(self, request: Request) -> Response:
        """The tokens of a chat in the model's template."""
        found = await read_body(request, CHAT, limit=self._service.limits.payload_limit)
        try:
            pieces = await self._service.templated(found["messages"])
        except Refused as refused:
            return refused.response()

        def tokens() -> list[dict[str, Any]]:
            every: list[dict[str, Any]] = []
            at = 0
            for text, _ in pieces:
                every += self._tokens(text, special=False, at=at)
                at += len(text)
            return every

        told = await anyio.to_thread.run_sync(tokens)
        return json_response({"tokenize_response": told, "templated_text": "".join(text for text, _ in pieces)})

    def _tokens(self, text: str, *, special: bool, at: int = 0) -> list[dict[str, Any]]:
        tokenizer = self._service.folder.tokenizer()
        found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        return [
            {"id": one, "text": text[start:stop], "start": at + start, "stop": at + stop}
            for one, (start, stop) in zip(found["input_ids"], found["offset_mapping"], strict=True)
        ]


def _card(name: str, owner: str, *, root: str, parent: str | None, most: int) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": owner,
        "root": root,
        "parent": parent,
        "max_model_len": most,
    }
