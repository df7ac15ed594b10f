"""Agents whose model answers from a function, and what their memory holds afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.graph.state import CompiledStateGraph
from pydantic import Field

from rag_tuned_memory import Memory, Step, Trajectory
from rag_tuned_memory.recall.prompt import has_injected

Flavour = Literal["sync", "async"]
Answer = Callable[[list[BaseMessage]], AIMessage | str]


class ScriptedChat(BaseChatModel):
    """Answers with ``answer(messages)``; keeps what it was given: the messages, and the options of each call."""

    answer: Answer
    prompts: list[list[BaseMessage]] = Field(default_factory=list)
    options: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    @property
    def injected(self) -> list[str]:
        """The recalled text of each call, empty where there was none."""
        return [_injected(prompt) for prompt in self.prompts]

    def bind_tools(self, tools: Sequence[Any], **options: Any) -> Runnable[Any, Any]:
        told = [convert_to_openai_tool(tool)["function"]["name"] for tool in tools]
        return self.bind(tools=told, **options)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        self.prompts.append(list(messages))
        self.options.append(options)
        said = self.answer(messages)
        message = said if isinstance(said, AIMessage) else AIMessage(said)
        return ChatResult(generations=[ChatGeneration(message=message.model_copy())])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        await asyncio.sleep(0)
        return self._generate(messages, **options)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> Iterator[ChatGenerationChunk]:
        message = self._generate(messages, **options).generations[0].message
        assert isinstance(message, AIMessage)
        for word in str(message.text).split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(f"{word} ", id=message.id))
        calls: list[Any] = [
            {"name": call["name"], "args": _json(call["args"]), "id": call["id"], "index": place}
            for place, call in enumerate(message.tool_calls)
        ]
        if calls:
            yield ChatGenerationChunk(message=AIMessageChunk("", tool_call_chunks=calls, id=message.id))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages, **options):
            await asyncio.sleep(0)
            yield chunk


def script(*answers: AIMessage | str | BaseException) -> ScriptedChat:
    """A model that gives these answers one after the other; an error among them is raised."""
    left = list(answers)

    def answer(messages: list[BaseMessage]) -> AIMessage | str:
        said = left.pop(0)
        if isinstance(said, BaseException):
            raise said
        return said

    return ScriptedChat(answer=answer)


def calls(*tools: tuple[str, dict[str, Any], str], text: str = "") -> AIMessage:
    """An answer that calls tools: name, arguments and id of each."""
    return AIMessage(text, tool_calls=[{"name": name, "args": args, "id": call} for name, args, call in tools])


async def run(agent: CompiledStateGraph[Any, Any, Any, Any], flavour: Flavour, given: Any, **options: Any) -> Any:
    """Invoke an agent one way or the other; a string is what the user says."""
    if isinstance(given, str):
        given = {"messages": [("user", given)]}
    if flavour == "async":
        return await agent.ainvoke(given, **options)
    return await asyncio.to_thread(lambda: agent.invoke(given, **options))


def thread(name: str = "t", **more: Any) -> Any:
    """The config of a conversation."""
    return {"configurable": {"thread_id": name, **more}}


def episodes(memory: Memory) -> list[Trajectory]:
    """What the memory holds of agents."""
    return [one for one in memory.export() if one.source == "langchain"]


def told(trajectory: Trajectory) -> list[str]:
    """Its steps in a line each."""
    return [line(step) for step in trajectory.steps]


def line(step: Step) -> str:
    """``tool_result c1: full``, ``message user: hello``, with ``!`` and the error behind it."""
    name = step.call_id or step.actor or ""
    what = f"{step.tool}({_json(step.arguments)})" if step.kind == "tool_call" else step.text
    return f"{step.kind} {name}: {what}" + (f" !{step.error}" if step.error else "")


def _injected(prompt: Sequence[BaseMessage]) -> str:
    texts = [str(one.text) for one in prompt if isinstance(one, SystemMessage)]
    return next((text for text in texts if has_injected(text)), "")


def _json(value: Any) -> str:
    return json.dumps(value)
