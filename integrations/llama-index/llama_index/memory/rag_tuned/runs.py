"""One agent run: events of its workflow in, steps of its episode out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

from llama_index.core.agent.workflow import AgentOutput, ToolCall, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage
from workflows.errors import WorkflowCancelledByUser

from llama_index.memory.rag_tuned.calls import CallIds
from llama_index.memory.rag_tuned.messages import SOURCE, ref_of, text_of, thinking, thought
from rag_tuned_memory.capture import EpisodeRecorder, OpenEpisode
from rag_tuned_memory.capture import steps as capture
from rag_tuned_memory.recall.prompt import strip_injected
from rag_tuned_memory.trajectory import Outcome, Step, StepKind

_MOST_GOAL = 2000
_DEFAULT_NAME = "Agent"


class Run:
    """A run under way. ``name`` is its id within the session: a run of the same name goes on with the same episode.

    Safe to use from several threads.
    """

    def __init__(
        self,
        recorder: EpisodeRecorder,
        namespace: str,
        session_id: str,
        name: str,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._recorder = recorder
        self._namespace = namespace
        self._session_id = session_id
        self._name = name
        self._metadata = dict(metadata or {})
        self._goal = ""
        self._place = 0
        self._calls = CallIds()
        self._speaker = "assistant"
        self._waits = False
        self._answer: str | None = None
        self._failures: list[str] = []
        self._lock = threading.Lock()

    @property
    def episode(self) -> OpenEpisode:
        """The run's open episode."""
        return self._recorder.begin(
            self._namespace,
            source=SOURCE,
            source_id=f"{self._session_id}/{self._name}",
            goal=self._goal,
            metadata={**self._metadata, "session_id": self._session_id},
        )

    def asked(self, message: str | ChatMessage | None) -> None:
        """What the user wants; only the first counts."""
        text = strip_injected(text_of(message) if isinstance(message, ChatMessage) else message or "").strip()
        with self._lock:
            if self._goal or not text:
                return
            self._goal = capture.storable(text)[:_MOST_GOAL]
            self._put(capture.message("user", text, ref=self._ref("user", text)))

    def said(self, output: AgentOutput) -> None:
        """What the model answered. What it says while it calls tools, or what has to be said again, is a thought."""
        message, actor = output.response, _actor(output.current_agent_name)
        text, thoughts = text_of(message), thinking(message)
        with self._lock:
            self._speaker = actor
            ref = self._ref(actor, text, thoughts)
            unfinished = bool(output.tool_calls or getattr(output, "retry_messages", None))
            self._answer = None if unfinished else ref
            if unfinished:
                self._put(thought("\n".join(part for part in (thoughts, text) if part), ref=ref, actor=actor))
            else:
                self._put(thought(thoughts, ref=ref, actor=actor))
                self._put(capture.message(actor, text, ref=ref))

    def called(self, call: ToolCall) -> None:
        """A tool is called; the same call again, after it waited for a person, is the same step."""
        with self._lock:
            self._waits = False
            arguments = capture.jsonable(call.tool_kwargs)
            call_id = self._calls.called(call.tool_id, call.tool_name, arguments, replayed=True)
            if not self.episode.has(StepKind.TOOL_CALL, call_id):
                self._put(capture.tool_call(call.tool_name, arguments, call_id=call_id, actor=self._speaker))

    def waits(self) -> None:
        """A tool waits for a person: if the run is stopped now, somebody may go on with it."""
        self._waits = True

    def answered(self, result: ToolCallResult) -> None:
        """What a tool gave back, or the error that it ended with."""
        output = result.tool_output
        text = text_of(ChatMessage(role="tool", blocks=output.blocks))
        error = (getattr(output, "exception", None) or text or "failed") if output.is_error else None
        with self._lock:
            call_id, _ = self._calls.answered(result.tool_id)
            self._put(
                capture.tool_result(result.tool_name, None if output.is_error else text, call_id=call_id, error=error)
            )

    def failed(self, error: BaseException) -> None:
        """An error that ended the run, or a step of it."""
        with self._lock:
            if (told := capture.described(error)) not in self._failures:
                self._failures.append(told)
                self._put(capture.failure(error, ref=f"failure-{len(self._failures)}"))

    def ended(self, result: Any) -> Outcome | None:
        """The outcome of a run that came to its end; None where it was stopped while it waited for a person.

        Whether an answer is a good one is not known here: only a failure is a verdict.
        """
        if isinstance(result, AgentOutput):
            self._corrected(result)
            return Outcome()
        return self.cancelled() if result is None else Outcome()

    def broken(self, error: BaseException) -> Outcome | None:
        """As ``ended``, for a run that raised."""
        if isinstance(error, WorkflowCancelledByUser | asyncio.CancelledError):
            return self.cancelled()
        self.failed(error)
        return Outcome(success=False, feedback=capture.described(error))

    def cancelled(self) -> Outcome | None:
        """The outcome of a run that somebody stopped; None where a tool of it waits for a person."""
        with self._lock:
            if self._waits:
                return None
            if self._goal or self._place:  # else it had not begun
                step = capture.message("user", "The run was cancelled.", ref="cancelled")
                self._put(step.model_copy(update={"kind": StepKind.OBSERVATION}) if step else None)
            return Outcome(feedback="cancelled")

    def _corrected(self, output: AgentOutput) -> None:
        """The final answer as the caller gets it: a ReAct agent takes it out of its reasoning, a tool may be it."""
        actor, text = _actor(output.current_agent_name), text_of(output.response)
        with self._lock:
            self._put(capture.message(actor, text, ref=self._answer or self._ref(actor, text)))

    def _ref(self, *content: str) -> str:
        self._place += 1
        return ref_of(self._place, *content)

    def _put(self, step: Step | None) -> None:
        if step is not None:
            self.episode.put(step)


def _actor(name: str) -> str:
    return "assistant" if name in ("", _DEFAULT_NAME) else name
