"""``ChatRagTuned``: a memory, and the models that it serves, as a LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, cast

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import Field, model_validator

from langchain_rag_tuned_memory._asking import (
    PER_CALL,
    ROUTE,
    Asked,
    Plan,
    base_name,
    base_names,
    call_options,
    holds_patterns,
)
from langchain_rag_tuned_memory._namespaces import memory_of, with_namespace
from langchain_rag_tuned_memory._telling import (
    PROVIDER,
    Shown,
    abstained,
    answered,
    both_libraries_errors,
    generated,
    result,
)
from langchain_rag_tuned_memory._tool_calling import Bindable, Choice, answer_pattern, as_openai, served_tools
from rag_tuned_memory.memory import Memories, Memory
from rag_tuned_memory.recall.budget import estimate_tokens
from rag_tuned_memory.routing.answering import AnswerChunk
from rag_tuned_memory.routing.base import Answer
from rag_tuned_memory.serving.base import Chunk, Generation
from rag_tuned_memory.store.base import Filter

_NOT_OURS = {"timeout", "max_retries", "api_key"}
"""What LangChain hands to every model: connections and their limits are the backend's."""


class ChatRagTuned(BaseChatModel):
    """Chat with a memory, or with the models behind it (this process, or whatever ``RTM_BACKEND`` names).

    ``model`` says who answers, and may be given with each call (``invoke(…, model=…)``, ``bind``, an agent's
    ``model_settings``):

    - ``"route"``: the memory's routing decides, on the last human message. One question alone is answered as
      ``Memory.answer`` does; a longer conversation goes to the chosen model whole, recalled text fenced at the end of
      the system message. Where the memory is needed and has nothing, it says so instead of asking a model.
    - ``"base"``: the base model takes the conversation as it is.
    - an adapter's name (``operations-v3``): that version takes the conversation as it is; it must serve this namespace.

    ``memory`` is a ``Memory``, or a ``Memories`` with a namespace for each call: ``namespace`` here,
    ``invoke(…, namespace=…)``, or ``config={"configurable": {"namespace": …}}``. ``k``, ``token_budget`` and ``where``
    bound what is recalled. ``max_tokens`` None is 48 for one question and 256 for a conversation; ``temperature`` and
    ``seed`` are of conversations, as answers of the memory are greedy.

    An answer's ``response_metadata`` carries ``model_name``, ``adapter`` and ``finish_reason``, and where the memory
    decided also ``route``, ``reason``, ``abstained`` and ``evidence`` (ids of trajectories).

    LangChain's standard ``timeout``, ``max_retries`` and ``api_key`` are taken and not used: connections and their
    limits are the backend's. Answers are not kept in LangChain's cache unless ``cache`` is given: a memory changes, and
    forgets.

    Raises when called:
        InvalidNamespace: of many memories, none was named.
        InvalidInput: names the argument, the message or the tool that cannot be taken.
        AdapterNotFound, AdapterNotServable: ``model`` names none of this namespace's, or one that does not serve.
        PromptTooLong: also LangChain's ``ContextOverflowError``.
        ModelNotPulled, BackendError, StoreError: see ``rag_tuned_memory.errors``.
    """

    memory: Memory | Memories = Field(exclude=True, repr=False)
    namespace: str | None = None
    model: str = Field(default=ROUTE, min_length=1)
    k: int = Field(default=4, ge=1)
    token_budget: int = Field(default=320, ge=0)
    where: Filter | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    seed: int | None = None
    stop: list[str] | None = None
    streaming: bool = False
    cache: BaseCache | bool | None = Field(default=False, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """LangChain leaves out what a model does not know: a misspelt name would do nothing."""
        if isinstance(given, dict) and (unknown := set(given) - set(cls.model_fields) - _NOT_OURS):
            raise ValueError(
                f"unknown: {', '.join(sorted(unknown))}; allowed are {', '.join(sorted(cls.model_fields))}"
            )
        return given

    def bind_tools(
        self, tools: Sequence[Bindable], *, tool_choice: Choice = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools to call; ``tool_choice`` is "auto", "any", "none" or a tool's name.

        Calls keep to the tools' JSON schemas, by a grammar in the backend. An ``openai+…`` backend has none: what its
        model writes is read all the same, but it cannot be made to call.

        Raises:
            InvalidInput: a tool that only its own provider can run, or a choice that is none of them.
        """
        bound = as_openai(tools)
        answer_pattern(served_tools(bound), tool_choice, parallel=True)
        return self.bind(tools=bound, tool_choice=tool_choice, **kwargs)

    def get_num_tokens(self, text: str) -> int:
        """A cautious estimate, without loading a tokenizer: more than today's models need for usual text."""
        return estimate_tokens([text])[0]

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        memory, asked = self._asked(messages, stop, kwargs)
        done: Answer | Generation | None
        with both_libraries_errors():
            if asked.plain:
                plan, done = None, memory.answer(asked.question, **asked.answering)
            else:
                plan = asked.plan(memory.decide(asked.question, **asked.recalling) if asked.by_route else None)
                done = None if plan.turn.abstention else memory.generate(**plan.generating)
        return result(_message(memory, asked, plan, done))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        memory, asked = self._asked(messages, stop, kwargs)
        done: Answer | Generation | None
        with both_libraries_errors():
            if asked.plain:
                plan, done = None, await memory.aanswer(asked.question, **asked.answering)
            else:
                plan = asked.plan(await memory.adecide(asked.question, **asked.recalling) if asked.by_route else None)
                done = None if plan.turn.abstention else await memory.agenerate(**plan.generating)
        return result(_message(memory, asked, plan, done))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        memory, asked = self._asked(messages, stop, kwargs)
        shown = Shown(asked.options.stop, acting=asked.acting)
        pieces: Iterator[AnswerChunk | Chunk]
        with both_libraries_errors():
            if asked.plain:
                plan, pieces = None, memory.stream(asked.question, **asked.answering)
            else:
                plan = asked.plan(memory.decide(asked.question, **asked.recalling) if asked.by_route else None)
                if plan.turn.abstention:
                    yield from shown.whole(_message(memory, asked, plan, None))
                    return
                pieces = memory.stream_generate(**plan.generating)
            with closing(cast("Generator[AnswerChunk | Chunk]", pieces)):
                for piece in pieces:
                    yield from shown.push(piece.text)
                    if done := _whole(piece):
                        yield from shown.finish(_message(memory, asked, plan, done))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        memory, asked = self._asked(messages, stop, kwargs)
        shown = Shown(asked.options.stop, acting=asked.acting)
        pieces: AsyncIterator[AnswerChunk | Chunk]
        with both_libraries_errors():
            if asked.plain:
                plan, pieces = None, memory.astream(asked.question, **asked.answering)
            else:
                plan = asked.plan(await memory.adecide(asked.question, **asked.recalling) if asked.by_route else None)
                if plan.turn.abstention:
                    for chunk in shown.whole(_message(memory, asked, plan, None)):
                        yield chunk
                    return
                pieces = memory.astream_generate(**plan.generating)
            async with aclosing(cast("AsyncGenerator[AnswerChunk | Chunk]", pieces)):
                async for piece in pieces:
                    for chunk in shown.push(piece.text):
                        yield chunk
                    if done := _whole(piece):
                        for chunk in shown.finish(_message(memory, asked, plan, done)):
                            yield chunk

    def _asked(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[Memory, Asked]:
        """The memory of the call's namespace, and what is asked of it."""
        given = kwargs.pop("namespace", None)
        memory = memory_of(self.memory, self.namespace if given is None else given)
        own = {name: getattr(self, name) for name in PER_CALL}
        stop = self.stop if stop is None else stop
        options = call_options({**own, **kwargs, "stop": stop or ()})
        return memory, Asked(tuple(messages), options, base_names(memory), holds_patterns(memory))

    @property
    def _llm_type(self) -> str:
        return "rag-tuned-memory"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("namespace", "stop", *PER_CALL)}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        told = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        return {**told, "ls_provider": PROVIDER}

    # Further down LangChain does not hand on the config, which may name the namespace.

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """See ``BaseChatModel``."""
        return super().invoke(input, config, **self._named(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """See ``BaseChatModel``."""
        return await super().ainvoke(input, config, **self._named(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """See ``BaseChatModel``."""
        return super().stream(input, config, **self._named(config, kwargs))

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """See ``BaseChatModel``."""
        return super().astream(input, config, **self._named(config, kwargs))

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """See ``BaseChatModel``."""
        return super().stream_events(input, config, **self._named(config, kwargs))

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """See ``BaseChatModel``."""
        return super().astream_events(input, config, **self._named(config, kwargs))

    def _named(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        return with_namespace(self.memory, self.namespace, config, kwargs)


def _message(memory: Memory, asked: Asked, plan: Plan | None, done: Answer | Generation | None) -> AIMessage:
    base = base_name(memory)
    if isinstance(done, Answer):
        return answered(done, base=base, stop=asked.options.stop)
    routing = plan.routing if plan else None
    if isinstance(done, Generation):
        return generated(done, routing, base=base, acting=asked.acting)
    return abstained(plan.turn.abstention or "" if plan else "", routing, base=base)


def _whole(piece: AnswerChunk | Chunk) -> Answer | Generation | None:
    """What the last piece of a stream carries."""
    return piece.answer if isinstance(piece, AnswerChunk) else piece.generation
