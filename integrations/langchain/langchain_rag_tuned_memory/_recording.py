"""Messages of an agent as steps of an episode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from rag_tuned_memory.capture import OpenEpisode, steps
from rag_tuned_memory.trajectory import Step, StepKind


@dataclass(frozen=True, slots=True)
class Called:
    """A tool call: its id, and what it asks for where that is known."""

    call_id: str
    tool: str | None = None
    arguments: Any = None


Lookup = Callable[[str], Called]
"""Finds a call by the id that the model gave it."""


def text_of(message: BaseMessage) -> str:
    """The message's text; a block that is no text is named in brackets (``[image_url]``)."""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part for block in message.content if (part := _block_text(block)))


def _block_text(block: str | dict[Any, Any]) -> str:
    if isinstance(block, str):
        return block
    kind = str(block.get("type") or "block")
    if isinstance(text := block.get("text"), str):
        return text
    return "" if kind in _NO_TEXT else f"[{kind}]"


_NO_TEXT = {"reasoning", "thinking", "redacted_thinking", "tool_use", "tool_call", "tool_call_chunk", "function_call"}
"""Blocks that are steps of their own, or nothing that anybody can read."""


def steps_of(message: BaseMessage, ref: str, lookup: Lookup) -> Iterator[Step]:
    """The steps that a message stands for: none for an empty one, several for an answer with tool calls."""
    if isinstance(message, ToolMessage):
        yield tool_result(message, lookup(message.tool_call_id))
        return
    if isinstance(message, AIMessage) and (thought := _thought(message)):
        yield Step(kind=StepKind.THOUGHT, actor="assistant", text=steps.storable(thought), ref=steps.storable(ref))
    said = steps.message(message.name or _role(message), text_of(message), ref=ref)
    if said is not None:
        yield said
    if isinstance(message, AIMessage):
        yield from _calls(message, ref, lookup)


def _role(message: BaseMessage) -> str:
    if isinstance(message, AIMessage):
        return "assistant"
    return "user" if isinstance(message, HumanMessage) else message.type


def tool_result(message: ToolMessage, called: Called) -> Step:
    """What a tool gave back."""
    name, text = message.name or called.tool, text_of(message)
    if message.status == "error":
        return steps.tool_result(name, "", call_id=called.call_id, error=text)
    return steps.tool_result(name, text, call_id=called.call_id)


def tool_messages(result: Any) -> list[ToolMessage]:
    """The messages in a tool's result, which may be a LangGraph command or a list of both."""
    if isinstance(result, ToolMessage):
        return [result]
    if isinstance(update := getattr(result, "update", None), Mapping):
        return tool_messages(update.get("messages"))
    return [one for part in result for one in tool_messages(part)] if isinstance(result, list | tuple) else []


def calls_in(message: BaseMessage) -> list[Called]:
    """The tool calls in a message, with the ids that the model gave them; ``message.id/0`` where it gave none."""
    if not isinstance(message, AIMessage):
        return []
    every = [*message.tool_calls, *message.invalid_tool_calls]
    return [
        Called(str(call["id"] or f"{message.id}/{place}"), call["name"], call["args"])
        for place, call in enumerate(every)
    ]


def call_ids(message: BaseMessage) -> list[str]:
    """The ids of the tool calls in a message, as the model gave them."""
    return [call.call_id for call in calls_in(message)]


def _calls(message: AIMessage, ref: str, lookup: Lookup) -> Iterator[Step]:
    names = [lookup(one.call_id).call_id for one in calls_in(message)]
    for call, name in zip(message.tool_calls, names, strict=False):
        yield steps.tool_call(call["name"], call["args"], call_id=name, ref=ref)
    for bad, name in zip(message.invalid_tool_calls, names[len(message.tool_calls) :], strict=True):
        step = steps.tool_call(bad["name"] or "", {"input": bad["args"]}, call_id=name, ref=ref)
        yield step.model_copy(update={"error": steps.described(bad["error"] or "not a valid tool call")})


def _thought(message: AIMessage) -> str:
    """What a model that shows its reasoning thought."""
    told = message.additional_kwargs.get("reasoning_content")
    if isinstance(told, str) and told.strip():
        return told
    if isinstance(message.content, str):
        return ""
    blocks = [block for block in message.content if isinstance(block, dict)]
    thoughts = [block.get("reasoning") or block.get("thinking") for block in blocks]
    return "\n".join(one for one in thoughts if isinstance(one, str) and one.strip())


class Transcript:
    """Writes the messages of a run into its episode, each once and again when it was changed.

    Some models give the same ids to the tool calls of each answer (``call_0``): the second answer's are told apart by a
    number, which depends on the order of the answers only. Safe to use from several threads.
    """

    def __init__(self, episode: OpenEpisode) -> None:
        self.episode = episode
        self._seen: dict[str, tuple[object, object]] = {}
        self._answers: dict[str, list[str]] = {}
        """The answers in which a call id occurred, in their order."""
        self._calls: dict[str, Called] = {}
        """The last call of each id."""
        self._results: dict[str, Called] = {}
        """The calls that tool messages belong to."""
        self._lock = threading.Lock()

    def observe(self, messages: Iterable[BaseMessage]) -> None:
        """Put what is new or changed in these messages, which stand in the order of the conversation."""
        seen = self._seen
        with self._lock:
            for place, message in enumerate(messages):
                ref = message.id or f"message-{place}"
                # objects, not values: a message is replaced or gets new content, and comparing text takes time
                content, calls = message.content, message.tool_calls if isinstance(message, AIMessage) else None
                known = seen.get(ref)
                if known is None or known[0] is not content or known[1] is not calls:
                    self._put(message, ref)
                    seen[ref] = (content, calls)

    def _put(self, message: BaseMessage, ref: str) -> None:
        made = {call.call_id: self._made(call, ref) for call in calls_in(message)}

        def lookup(call: str) -> Called:
            if isinstance(message, ToolMessage):
                return self._results.setdefault(ref, self._calls.get(call, Called(call)))
            return made[call]

        for step in steps_of(message, ref, lookup):
            self.episode.put(step)

    def called(self, name: str, arguments: Any, call_id: str) -> None:
        """Put a tool call as it is carried out, which somebody may have changed since the model asked for it."""
        with self._lock:
            asked = self._calls.get(call_id)
            if asked is not None and asked.tool == name and asked.arguments == arguments:
                return
            self._calls[call_id] = Called(self._latest(call_id), name, arguments)
            answers = self._answers.get(call_id)
            ref = answers[-1] if answers else None
            self.episode.put(steps.tool_call(name, arguments, call_id=self._latest(call_id), ref=ref))

    def returned(self, name: str, call_id: str, messages: Sequence[ToolMessage]) -> None:
        """Put what a tool that was just called gave back; no message: it ended without a word."""
        with self._lock:
            called = Called(self._latest(call_id), name)
            own = [one for one in messages if one.tool_call_id == call_id]
            self.episode.put(
                tool_result(own[-1], called) if own else steps.tool_result(name, None, call_id=called.call_id)
            )

    def raised(self, name: str, call_id: str, error: BaseException | str) -> None:
        """Put the error that a tool ended with."""
        with self._lock:
            self.episode.put(steps.tool_result(name, None, call_id=self._latest(call_id), error=error))

    def _made(self, call: Called, answer: str) -> Called:
        """``call``, which ``answer`` made, with an id that is unique."""
        answers = self._answers.setdefault(call.call_id, [])
        if answer not in answers:
            answers.append(answer)
        unique = replace(call, call_id=_numbered(call.call_id, answers.index(answer)))
        if answer == answers[-1]:
            self._calls[call.call_id] = unique
        return unique

    def _latest(self, call_id: str) -> str:
        return self._calls[call_id].call_id if call_id in self._calls else call_id


def _numbered(call_id: str, place: int) -> str:
    return call_id if place == 0 else f"{call_id}#{place + 1}"
