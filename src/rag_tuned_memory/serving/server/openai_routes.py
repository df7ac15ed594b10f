"""OpenAI's routes in TGI's form: /v1/chat/completions and /v1/completions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response

from rag_tuned_memory.serving.local.asked import Step
from rag_tuned_memory.serving.server import told
from rag_tuned_memory.serving.server.bodies import read_body
from rag_tuned_memory.serving.server.errors import Refused, json_response
from rag_tuned_memory.serving.server.inference import Answered
from rag_tuned_memory.serving.server.service import Service
from rag_tuned_memory.serving.server.shapes import CHAT, COMPLETION, Parameters, openai_parameters
from rag_tuned_memory.serving.server.sse import DONE, EventStream, Write, event, while_connected
from rag_tuned_memory.serving.server.validate import Prompt

COMPUTED_HERE = {"x-compute-type": "local"}


@dataclass(frozen=True)
class Asked:
    """An OpenAI request in the server's own terms."""

    prompts: tuple[Prompt, ...]
    parameters: Parameters
    model: str
    """What the answer says that it is from."""
    logprobs: bool = False
    include_usage: bool = False


class OpenAIRoutes:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat(self, request: Request) -> Response:
        """A chat's next message."""
        found = await read_body(request, CHAT, limit=self._service.limits.payload_limit)
        try:
            asked = await self._chat_asked(found)
        except Refused as refused:
            return refused.response()
        if found.get("stream"):
            return self._streamed(self._chat_events, asked)
        return await while_connected(request, lambda: self._chat_answer(asked))

    async def completions(self, request: Request) -> Response:
        """What comes after one or several prompts."""
        found = await read_body(request, COMPLETION, limit=self._service.limits.payload_limit)
        try:
            asked = self._completion_asked(found)
        except Refused as refused:
            return refused.response()
        if found.get("stream"):
            return self._streamed(self._completion_events, asked)
        return await while_connected(request, lambda: self._completion_answer(asked))

    async def _chat_asked(self, found: dict[str, Any]) -> Asked:
        _refuse_tools(found)
        pieces = await self._service.templated(found["messages"])
        prompt = Prompt("".join(text for text, _ in pieces), tuple(one for _, ids in pieces for one in ids))
        adapter = self._service.adapters.by_model(found.get("model"))
        return Asked(
            (prompt,),
            openai_parameters(found, adapter),
            model=self._service.base_id if adapter is None else adapter,
            logprobs=bool(found.get("logprobs")),
            include_usage=(found.get("stream_options") or {}).get("include_usage", False),
        )

    def _completion_asked(self, found: dict[str, Any]) -> Asked:
        if found.get("suffix"):
            message = "Suffix is not supported and can be achieved by preprocessing the prompt."
            raise Refused(422, message, "suffix not supported")
        most = self._service.limits.max_client_batch_size
        if len(found["prompt"]) > most:
            message = f"Number of prompts exceeds the maximum allowed batch size of {most}"
            raise Refused(422, message, "batch size exceeded")
        adapter = self._service.adapters.by_model(found.get("model"))
        prompts = tuple(Prompt(text) for text in found["prompt"])
        # TGI names the base model here whatever answered.
        return Asked(prompts, openai_parameters(found, adapter), model=self._service.base_id)

    def _streamed(self, events: Callable[[Asked, Write], Awaitable[None]], asked: Asked) -> Response:
        characters = sum(len(prompt.text) for prompt in asked.prompts)
        return EventStream(partial(events, asked), {**COMPUTED_HERE, "x-compute-characters": str(characters)})

    async def _chat_answer(self, asked: Asked) -> Response:
        try:
            answer = await self._service.inference.answer(asked.prompts[0], asked.parameters)
        except Refused as refused:
            return refused.response()
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text},
            "logprobs": told.chat_logprobs(answer.steps) if asked.logprobs else None,
            "finish_reason": told.finish_reason(answer.finish),
        }
        body = told.openai_head("chat.completion", asked.model) | {"choices": [choice], "usage": _usage([answer])}
        return json_response(body, headers=told.timing_headers([answer]))

    async def _chat_events(self, asked: Asked, write: Write) -> None:
        try:
            async with self._service.inference.begin(asked.prompts[0], asked.parameters, live=True) as running:
                count = 0
                async for step in running.steps:
                    count += 1
                    choice = {
                        "index": 0,
                        "delta": {"role": "assistant", "content": "" if step.special else step.text},
                        "logprobs": told.chat_logprobs([step]) if asked.logprobs else None,
                        "finish_reason": told.finish_reason(step.finish) if step.finish else None,
                    }
                    await write(_chunk(asked.model, [choice], None))
                if asked.include_usage:
                    spent = told.usage(len(running.checked.request.ids), count)
                    await write(_chunk(asked.model, [], spent))
        except Refused as refused:
            await write(event(refused.openai_event()))
        await write(DONE)

    async def _completion_answer(self, asked: Asked) -> Response:
        answers: dict[int, Answered] = {}
        refusals: list[Refused] = []

        async def one(index: int, prompt: Prompt) -> None:
            try:
                answers[index] = await self._service.inference.answer(prompt, asked.parameters)
            except Refused as refused:
                refusals.append(refused)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for index, prompt in enumerate(asked.prompts):
                group.start_soon(one, index, prompt)
        if refusals:
            return refusals[0].response()
        choices = [
            {
                "index": index,
                "text": answers[index].text,
                "logprobs": None,
                "finish_reason": told.finish_reason(answers[index].finish),
            }
            for index in sorted(answers)
        ]
        every = list(answers.values())
        body = told.openai_head("text_completion", asked.model) | {"choices": choices, "usage": _usage(every)}
        headers = told.timing_headers(every)
        del headers["x-compute-time"]  # the router has none here
        return json_response(body, headers=headers)

    async def _completion_events(self, asked: Asked, write: Write) -> None:
        """The chunks of all prompts as they come."""
        async with anyio.create_task_group() as group:
            for index, prompt in enumerate(asked.prompts):
                group.start_soon(self._one_completion, asked, index, prompt, write)
        await write(DONE)

    async def _one_completion(self, asked: Asked, index: int, prompt: Prompt, write: Write) -> None:
        try:
            async with self._service.inference.begin(prompt, asked.parameters, live=True) as running:
                count = 0
                async for step in running.steps:
                    count += 1
                    spent = told.usage(len(running.checked.request.ids), count)
                    await write(_completion_chunk(asked.model, index, step, spent))
        except Refused as refused:
            await write(event(refused.openai_event()))


def _chunk(model: str, choices: list[dict[str, Any]], spent: dict[str, int] | None) -> str:
    return event(told.openai_head("chat.completion.chunk", model) | {"choices": choices, "usage": spent})


def _completion_chunk(model: str, index: int, step: Step, spent: dict[str, int]) -> str:
    finish = told.finish_reason(step.finish) if step.finish else ""
    text = "" if step.special else step.text
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
    body = told.openai_head("text_completion", model) | {"choices": [choice]}
    return event(body | {"usage": spent} if step.finish else body)


def _usage(answers: list[Answered]) -> dict[str, int]:
    prompts = sum(len(answer.checked.request.ids) for answer in answers)
    return told.usage(prompts, sum(len(answer.steps) for answer in answers))


def _refuse_tools(found: dict[str, Any]) -> None:
    """Tools need a grammar of their own and a template that knows them; TGI's own refusals come first."""
    choice = found.get("tool_choice")
    if not found.get("tools") or choice == "none":
        return
    if found.get("response_format"):
        raise Refused(422, "Tool error: Grammar and tools are mutually exclusive", "tool_error")
    names = [tool["function"]["name"] for tool in found["tools"]]
    named = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    if named is not None and named not in names:
        raise Refused(422, f"Tool error: Tool with name {named} not found", "tool_error")
    raise Refused(422, "Tool error: this server calls no tools; send tool_choice none, or no tools", "tool_error")
