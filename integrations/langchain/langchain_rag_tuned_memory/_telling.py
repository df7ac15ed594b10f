"""What a memory or its model said, as LangChain's messages and chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_rag_tuned_memory._tool_calling import calls_of
from rag_tuned_memory.errors import PromptTooLong
from rag_tuned_memory.recall.recollection import Recollection
from rag_tuned_memory.routing.base import Answer, Route, Routing
from rag_tuned_memory.serving.base import Generation
from rag_tuned_memory.serving.stopping import StopStrings
from rag_tuned_memory.serving.tools import OPENING, Said, read

PROVIDER = "rag-tuned-memory"


class PromptOverflow(PromptTooLong, ContextOverflowError):
    """A prompt that does not fit, as both libraries know it."""


@contextmanager
def both_libraries_errors() -> Iterator[None]:
    """Errors that LangChain has a class of its own for are raised as both."""
    try:
        yield
    except PromptTooLong as error:
        raise PromptOverflow(error.message, place=error.place, remedy=error.remedy) from error


def answered(answer: Answer, *, base: str, stop: Sequence[str]) -> AIMessage:
    """An answer of the memory; ``base`` is the base model's name."""
    finding = StopStrings(stop)
    text = finding.push(answer.text)
    return _message(
        Said(text=text if finding.found else text + finding.finish()),
        base,
        answer.adapter,
        (answer.prompt_tokens, answer.answer_tokens),
        {"finish_reason": "stop", **_routed(answer.route, answer.reason, answer.abstained, answer.evidence)},
    )


def generated(done: Generation, routing: Routing | None, *, base: str, acting: bool) -> AIMessage:
    """What a model said to a conversation; ``acting`` reads calls out of it."""
    said = read(done.text) if acting else Said(text=done.text.strip())
    told = {"finish_reason": "tool_calls" if said.calls else done.finish_reason}
    return _message(
        said, base, done.adapter, (done.prompt_tokens, len(done.tokens)), {**told, **_of(routing, abstained=False)}
    )


def abstained(text: str, routing: Routing | None, *, base: str) -> AIMessage:
    """What is said where the memory was needed and has nothing: nobody was asked."""
    return _message(Said(text=text), base, None, (0, 0), {"finish_reason": "stop", **_of(routing, abstained=True)})


def result(message: AIMessage) -> ChatResult:
    """A message as what a chat model returns."""
    return ChatResult(generations=[ChatGeneration(message=message)])


class Shown:
    """Pieces of an answer as chunks: white space before it, what comes after a stop string, and calls are held back."""

    def __init__(self, stop: Sequence[str], *, acting: bool) -> None:
        self._stop = StopStrings((OPENING, *stop) if acting else stop)
        self._begun = False

    def push(self, text: str) -> Iterator[ChatGenerationChunk]:
        """What may be shown of a piece."""
        if not self._stop.found:
            yield from self._show(self._stop.push(text))

    def finish(self, message: AIMessage) -> Iterator[ChatGenerationChunk]:
        """What was held back, and the last chunk, which carries all but the text of ``message``."""
        if not self._stop.found:
            yield from self._show(self._stop.finish())
        last = AIMessageChunk(
            content="",
            tool_calls=message.tool_calls,
            invalid_tool_calls=message.invalid_tool_calls,
            response_metadata=message.response_metadata,
            usage_metadata=message.usage_metadata,
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last)

    def whole(self, message: AIMessage) -> Iterator[ChatGenerationChunk]:
        """A message that came at once."""
        yield from self.push(str(message.content))
        yield from self.finish(message)

    def _show(self, text: str) -> Iterator[ChatGenerationChunk]:
        shown = text if self._begun else text.lstrip()
        if shown:
            self._begun = True
            yield ChatGenerationChunk(message=AIMessageChunk(content=shown))


def _message(said: Said, base: str, adapter: str | None, tokens: tuple[int, int], told: dict[str, Any]) -> AIMessage:
    calls, invalid = calls_of(said)
    asked, answered = tokens
    return AIMessage(
        content=said.text,
        tool_calls=calls,
        invalid_tool_calls=invalid,
        response_metadata={"model_provider": PROVIDER, "model_name": adapter or base, "adapter": adapter, **told},
        usage_metadata=UsageMetadata(input_tokens=asked, output_tokens=answered, total_tokens=asked + answered),
    )


def _of(routing: Routing | None, *, abstained: bool) -> dict[str, Any]:
    """What is told of a decision; nothing where the caller named the model."""
    if routing is None:
        return {}
    decision = routing.decision
    shown = decision.route in (Route.RETRIEVAL, Route.BOTH) and not decision.abstain
    return _routed(decision.route, decision.reason, abstained, routing.recollection if shown else None)


def _routed(route: Route, reason: str, abstained: bool, evidence: Recollection | None) -> dict[str, Any]:
    found = [one.trajectory_id for one in evidence.results] if evidence and not abstained else []
    return {
        "route": route.value,
        "reason": reason,
        "abstained": abstained,
        "evidence": list(dict.fromkeys(found)),
    }
