"""What a model said, as LlamaIndex's responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole

from llama_index.memory.rag_tuned.asking import Plan
from llama_index.memory.rag_tuned.conversation import written
from rag_tuned_memory.serving.base import Chunk, Generation
from rag_tuned_memory.serving.stopping import StopStrings
from rag_tuned_memory.serving.tools import OPENING, Said, read


def response(done: Generation, plan: Plan, base: str) -> ChatResponse:
    """A whole answer. Its ``raw`` says who answered and why; calls are in the message's ``additional_kwargs``."""
    said = read(done.text) if plan.acting else Said(text=done.text.strip())
    text = said.text if said.bad is None else done.text.strip()
    calls = written(said)
    return ChatResponse(
        message=_message(text, {"tool_calls": calls} if calls else {}),
        raw={
            **_who(plan, done.adapter, base),
            "finish_reason": "tool_calls" if calls else done.finish_reason,
            "usage": _usage(done),
        },
        additional_kwargs=_usage(done),
    )


class Shown:
    """Pieces of an answer as a stream of responses: white space before it and calls are held back.

    The last response has the calls and the whole of ``raw``; a delta is what is new, its message all that was shown.
    """

    def __init__(self, plan: Plan, base: str) -> None:
        self._plan, self._base = plan, base
        self._stop = StopStrings((OPENING,) if plan.acting else ())
        self._text = ""

    def push(self, piece: Chunk) -> Iterator[ChatResponse]:
        """What may be shown of a piece."""
        if piece.text and not self._stop.found:
            yield from self._show(self._stop.push(piece.text))
        if piece.generation:
            whole = response(piece.generation, self._plan, self._base)
            if not self._stop.found:
                yield from self._show(self._stop.finish())
            elif whole.message.content and not whole.message.additional_kwargs:  # meant as a call, and none
                yield from self._show(whole.message.content[len(self._text) :])
            message = _message(self._text.rstrip(), whole.message.additional_kwargs)
            yield whole.model_copy(update={"message": message, "delta": ""})

    def _show(self, text: str) -> Iterator[ChatResponse]:
        new = text if self._text else text.lstrip()
        if new:
            self._text += new
            who = _who(self._plan, self._plan.generating["adapter"], self._base)
            yield ChatResponse(message=_message(self._text, {}), delta=new, raw=who)


def pieces(done: Generation) -> tuple[Chunk, Chunk]:
    """An answer that came at once, as a stream has it."""
    return Chunk(done.text), Chunk("", done)


def _message(text: str, more: dict[str, Any]) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text, additional_kwargs=more)


def _who(plan: Plan, adapter: str | None, base: str) -> dict[str, Any]:
    return {"model": adapter or base, "adapter": adapter, **plan.told}


def _usage(done: Generation) -> dict[str, int]:
    asked, answered = done.prompt_tokens, len(done.tokens)
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
