"""A function-calling LLM that says what it is told to say, and keeps what it was shown."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from llama_index.core.agent.workflow import base_agent
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool
from pydantic import PrivateAttr

from llama_index.memory.rag_tuned.messages import Asked, asked

try:
    from llama_index.core.base.llms.types import ToolCallBlock
except ImportError:  # llama-index-core before 0.14.6
    ToolCallBlock = None  # type: ignore[assignment,misc]

WAITS = hasattr(base_agent, "_get_waiting_for_event_exception")
"""Whether this version's agents let a tool wait for a person; older ones took the waiting for an error of the tool."""

Reply = str | list[Asked] | BaseException | ChatMessage
"""A text, tool calls, an error that is raised, or a whole message."""


def call(tool: str, call_id: str | None = "c1", **arguments: Any) -> Asked:
    """A tool call."""
    return Asked(call_id, tool, arguments)


def calls(*made: Asked, text: str = "") -> ChatMessage:
    """A message that calls tools: in blocks, or in the form of a version that has no block for it."""
    said = [TextBlock(text=text)] if text else []
    if ToolCallBlock is not None:
        blocks = [ToolCallBlock(tool_call_id=one.id, tool_name=one.tool, tool_kwargs=one.arguments) for one in made]
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=[*said, *blocks])
    older = [
        {"id": one.id, "type": "function", "function": {"name": one.tool, "arguments": json.dumps(one.arguments)}}
        for one in made
    ]
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=said, additional_kwargs={"tool_calls": older})


class ScriptedLLM(FunctionCallingLLM):
    """Says ``replies`` one after the other, or what the function given as ``replies`` answers to the messages."""

    _replies: list[Reply] | Callable[[Sequence[ChatMessage]], Reply] = PrivateAttr()
    _wait: float = PrivateAttr(default=0.0)
    _seen: list[list[ChatMessage]] = PrivateAttr(default_factory=list)

    def __init__(
        self, replies: Sequence[Reply] | Callable[[Sequence[ChatMessage]], Reply], *, wait: float = 0.0, **fields: Any
    ) -> None:
        super().__init__(**fields)
        self._replies = replies if callable(replies) else list(replies)
        self._wait = wait

    @classmethod
    def class_name(cls) -> str:
        return "ScriptedLLM"

    @property
    def seen(self) -> list[list[ChatMessage]]:
        """The messages of each call."""
        return self._seen

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_function_calling_model=True, is_chat_model=True, context_window=32_000)

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        self._seen.append(copy.deepcopy(list(messages)))
        reply = self._replies(messages) if callable(self._replies) else self._replies.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        return ChatResponse(message=_message(reply))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        await asyncio.sleep(self._wait)
        return self.chat(messages, **kwargs)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Iterator[ChatResponse]:
        return iter(_pieces(self.chat(messages, **kwargs).message))

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncIterator[ChatResponse]:
        pieces = _pieces((await self.achat(messages, **kwargs)).message)

        async def stream() -> AsyncIterator[ChatResponse]:
            for piece in pieces:
                await asyncio.sleep(0)
                yield piece

        return stream()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self.chat([ChatMessage(prompt)]).message.content or "")

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return self.complete(prompt)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Iterator[CompletionResponse]:
        return iter([self.complete(prompt)])

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncIterator[CompletionResponse]:
        raise NotImplementedError

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        return {"messages": list(chat_history or [])}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        return [
            ToolSelection(tool_id=one.id or "", tool_name=one.tool, tool_kwargs=one.arguments)
            for one in asked(response.message)
        ]


def _message(reply: Reply) -> ChatMessage:
    if isinstance(reply, ChatMessage):
        return reply
    if isinstance(reply, list):
        return calls(*reply)
    return ChatMessage(role=MessageRole.ASSISTANT, content=str(reply))


def _pieces(message: ChatMessage) -> list[ChatResponse]:
    """What a stream gives: the text word by word, the last piece with everything."""
    words = [f"{word} " for word in (message.content or "").split(" ")]
    pieces = [
        ChatResponse(message=ChatMessage(role=message.role, content="".join(words[:count])), delta=words[count - 1])
        for count in range(1, len(words))
    ]
    return [*pieces, ChatResponse(message=message, delta=words[-1].rstrip())]
