"""``RagTunedLLM``: the models behind a memory as an LLM of LlamaIndex, the adapter chosen for each call."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import aclosing, closing
from typing import Any, cast

from llama_index.core.base.llms.generic_utils import (
    achat_to_completion_decorator,
    astream_chat_to_completion_decorator,
    chat_to_completion_decorator,
    stream_chat_to_completion_decorator,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool
from pydantic import Field, PrivateAttr

from llama_index.memory.rag_tuned.asking import PER_CALL, ROUTE, Asked, Plan, call_options
from llama_index.memory.rag_tuned.binding import Binding, MemoryLike, NamespaceLike
from llama_index.memory.rag_tuned.conversation import as_openai, selections
from llama_index.memory.rag_tuned.telling import Shown, pieces, response
from llama_index.memory.rag_tuned.tolerance import OnError, tolerate
from rag_tuned_memory import Filter, Memory

logger = logging.getLogger(__name__)
_NO_QUESTION = "no user's message asks anything"


class RagTunedLLM(FunctionCallingLLM):
    """Chat with the models behind a memory (this process, or whatever ``RTM_BACKEND`` names); agents may call tools.

    ``model`` says who answers, and may be given with each call (``llm.chat(messages, model=…)``):

    - ``"route"``: the memory's routing decides, on the last user's message, for each call. The chat goes to the
      chosen model whole, recalled text fenced at the end of the system message (unless a memory put it there already).
      Where the memory is needed and has nothing, it says so instead of asking a model, unless there are tools.
    - ``"base"``: the base model takes the chat as it is. This is right for a response synthesizer.
    - an adapter's name (``operations-v3``): that version takes the chat as it is; it must serve this namespace.

    ``memory`` is a ``Memory``, or ``Memories`` with a ``namespace`` (text, or a callable that is asked at each call).
    ``k``, ``token_budget`` and ``where`` bound what is recalled. Tool calls keep to the tools' JSON schemas, by a
    grammar in the backend. With ``on_error`` ``log``, a memory that cannot be asked leaves the chat to the base model.

    A response's ``raw`` says who answered: ``model``, ``adapter``, ``route``, ``reason``, ``evidence`` (ids of the
    episodes shown), ``abstained``, ``namespace``, ``finish_reason`` and ``usage``. Serialised, it has no memory in it:
    make it anew.

    Raises when called:
        InvalidNamespace: nobody said whose memory is meant.
        InvalidInput: names the option, the message or the tool that cannot be taken.
        AdapterNotFound, AdapterNotServable: ``model`` names none of this namespace's, or one that does not serve.
        ModelNotPulled, PromptTooLong, BackendError: the model cannot answer.
    """

    model: str = Field(default=ROUTE, min_length=1)
    k: int = Field(default=4, ge=1)
    token_budget: int = Field(default=320, ge=0)
    where: Filter | None = None
    max_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    context_window: int = Field(default=8192, gt=0, description="Tokens that prompt and answer may have together.")
    on_error: OnError = "log"
    _bound: Binding = PrivateAttr()

    def __init__(self, memory: MemoryLike, *, namespace: NamespaceLike = None, **fields: Any) -> None:
        bound = Binding(memory, namespace)
        super().__init__(**fields)
        self._bound = bound

    @classmethod
    def class_name(cls) -> str:
        """``RagTunedLLM``."""
        return "RagTunedLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans with."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_tokens,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self._bound.base_model if self.model == ROUTE else self.model,
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """See ``LLM.chat``; the class says what may be given with a call."""
        memory, asked = self._asked(messages, kwargs)
        plan = self._plan(memory, asked)
        return response(plan.declined or memory.generate(**plan.generating), plan, asked.base)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As ``chat``."""
        memory, asked = self._asked(messages, kwargs)
        plan = await self._aplan(memory, asked)
        return response(plan.declined or await memory.agenerate(**plan.generating), plan, asked.base)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """As ``chat``, in pieces; calls and usage come with the last one. Closing it stops the model."""
        memory, asked = self._asked(messages, kwargs)
        plan = self._plan(memory, asked)

        def told() -> ChatResponseGen:
            shown = Shown(plan, asked.base)
            if plan.declined:
                for piece in pieces(plan.declined):
                    yield from shown.push(piece)
                return
            with closing(cast(Any, memory.stream_generate(**plan.generating))) as generated:
                for piece in generated:
                    yield from shown.push(piece)

        return told()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As ``stream_chat``."""
        memory, asked = self._asked(messages, kwargs)
        plan = await self._aplan(memory, asked)

        async def told() -> ChatResponseAsyncGen:
            shown = Shown(plan, asked.base)
            if plan.declined:
                for piece in pieces(plan.declined):
                    for one in shown.push(piece):
                        yield one
                return
            async with aclosing(cast(Any, memory.astream_generate(**plan.generating))) as generated:
                async for piece in generated:
                    for one in shown.push(piece):
                        yield one

        return told()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The prompt as a user's message."""
        return chat_to_completion_decorator(self.chat)(prompt, **kwargs)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As ``complete``."""
        return await achat_to_completion_decorator(self.achat)(prompt, **kwargs)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """As ``complete``, in pieces."""
        return stream_chat_to_completion_decorator(self.stream_chat)(prompt, **kwargs)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """As ``complete``, in pieces."""
        return await astream_chat_to_completion_decorator(self.astream_chat)(prompt, **kwargs)

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        said = [ChatMessage(user_msg)] if isinstance(user_msg, str) else [user_msg] if user_msg else []
        return {
            "messages": [*(chat_history or []), *said],
            "tools": as_openai(tools),
            "tool_required": tool_required,
            "allow_parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls that an answer asks for. Raises ValueError where there is none and there must be one."""
        found = selections(response.message)
        if error_on_no_tool_call and not found:
            raise ValueError(f"Expected at least one tool call, but got {len(found)} tool calls.")
        return found

    def _asked(self, messages: Sequence[ChatMessage], given: dict[str, Any]) -> tuple[Memory, Asked]:
        memory = self._bound.memory()
        own = {name: getattr(self, name) for name in PER_CALL}
        options = call_options({**own, **given})
        return memory, Asked(tuple(messages), options, self._bound.base_model, memory.namespace)

    def _plan(self, memory: Memory, asked: Asked) -> Plan:
        if not asked.question:
            return asked.plan(None, *self._why(asked))
        try:
            routing = memory.decide(asked.question, **asked.recalling)
        except Exception as error:
            return asked.plan(None, self._without_memory(error))
        return asked.plan(routing)

    async def _aplan(self, memory: Memory, asked: Asked) -> Plan:
        if not asked.question:
            return asked.plan(None, *self._why(asked))
        try:
            routing = await memory.adecide(asked.question, **asked.recalling)
        except Exception as error:
            return asked.plan(None, self._without_memory(error))
        return asked.plan(routing)

    @staticmethod
    def _why(asked: Asked) -> tuple[str, ...]:
        return (_NO_QUESTION,) if asked.options.model == ROUTE else ()

    def _without_memory(self, error: Exception) -> str:
        tolerate(error, self.on_error, logger, "The base model answers, without memory")
        return f"the memory failed: {type(error).__name__}"
