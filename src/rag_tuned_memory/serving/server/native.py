"""TGI's own routes: /generate, /generate_stream and the compatible /."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from rag_tuned_memory.serving.server import told
from rag_tuned_memory.serving.server.bodies import read_body
from rag_tuned_memory.serving.server.errors import Refused, json_response, validation
from rag_tuned_memory.serving.server.inference import Answered
from rag_tuned_memory.serving.server.service import Service
from rag_tuned_memory.serving.server.shapes import GENERATE, Parameters, parameters_of
from rag_tuned_memory.serving.server.sse import EventStream, Write, event, while_connected
from rag_tuned_memory.serving.server.validate import Prompt


class NativeRoutes:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def generate(self, request: Request) -> Response:
        """One JSON answer; a ``stream`` in the body is ignored."""
        prompt, asked, _ = await self._read(request)
        return await while_connected(request, lambda: self._answer(prompt, asked, listed=False))

    async def generate_stream(self, request: Request) -> Response:
        """A stream of tokens."""
        prompt, asked, _ = await self._read(request)
        return self._stream(prompt, asked)

    async def compatible(self, request: Request) -> Response:
        """As huggingface_hub's clients ask: a stream or a list of one answer, with the prompt unless they say no."""
        prompt, asked, stream = await self._read(request)
        if asked.return_full_text is None:
            asked = replace(asked, return_full_text=True)
        if stream:
            return self._stream(prompt, asked)
        return await while_connected(request, lambda: self._answer(prompt, asked, listed=True))

    async def _read(self, request: Request) -> tuple[Prompt, Parameters, bool]:
        found = await read_body(request, GENERATE, limit=self._service.limits.payload_limit)
        prompt = Prompt(found["inputs"], special_tokens=found.get("add_special_tokens", True))
        return prompt, parameters_of(found.get("parameters")), found.get("stream", False)

    async def _answer(self, prompt: Prompt, asked: Parameters, *, listed: bool) -> Response:
        inference = self._service.inference
        try:
            if asked.best_of and asked.best_of > 1:
                answers = await inference.best_of(prompt, asked, asked.best_of)
            else:
                answers = [await inference.answer(prompt, asked)]
        except Refused as refused:
            return refused.response()
        body = await self._told(answers, asked)
        return json_response([body] if listed else body, headers=told.timing_headers(answers))

    async def _told(self, answers: Sequence[Answered], asked: Parameters) -> dict[str, Any]:
        best = answers[0]
        before = best.prompt.text if asked.return_full_text else ""
        body: dict[str, Any] = {"generated_text": before + best.text}
        if asked.details or asked.decoder_input_details:
            texts = [await self._token_texts(answer) for answer in answers]
            body["details"] = told.details(best, texts[0])
            if len(answers) > 1:
                body["details"]["best_of_sequences"] = [
                    {"generated_text": before + answer.text, **told.details(answer, text)}
                    for answer, text in zip(answers[1:], texts[1:], strict=True)
                ]
        return body

    async def _token_texts(self, answer: Answered) -> list[str]:
        """The texts of the prompt's tokens, where their log-probabilities are told."""
        if answer.prefill is None:
            return []
        tokenizer = self._service.folder.tokenizer()
        return await anyio.to_thread.run_sync(lambda: [tokenizer.decode([one]) for one in answer.checked.request.ids])

    def _stream(self, prompt: Prompt, asked: Parameters) -> Response:
        headers = {"x-compute-type": "local", "x-compute-characters": str(len(prompt.text))}
        return EventStream(partial(self._events, prompt, asked), headers)

    async def _events(self, prompt: Prompt, asked: Parameters, write: Write) -> None:
        try:
            if asked.best_of is not None and asked.best_of != 1:
                raise validation("`best_of` != 1 is not supported when streaming tokens")
            if asked.decoder_input_details:
                raise validation("`decoder_input_details` == true is not supported when streaming tokens")
            async with self._service.inference.begin(prompt, asked, live=True) as running:
                index = 0
                async for step in running.steps:
                    index += 1
                    one: dict[str, Any] = {"index": index, "token": told.token(step)}
                    if running.checked.request.top:
                        one["top_tokens"] = [told.token(other) for other in step.top]
                    one |= {"generated_text": None, "details": None}
                    if step.finish:
                        one["generated_text"] = (prompt.text if asked.return_full_text else "") + (step.answer or "")
                        if asked.details:
                            one["details"] = {
                                "finish_reason": step.finish,
                                "generated_tokens": index,
                                "seed": running.checked.seed,
                                "input_length": len(running.checked.request.ids),
                            }
                    await write(event(one))
        except Refused as refused:
            await write(event(refused.body()))
