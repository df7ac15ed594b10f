"""LlamaIndex's spans and events, handed to the runs that they belong to.

A run is a span of its own and each step of it a span below that one. The dispatcher drops whatever a handler raises
without a word, so nothing here may raise: it is logged.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from llama_index.core.agent.workflow.workflow_events import (
    AgentOutput,
    AgentWorkflowStartEvent,
    ToolCall,
    ToolCallResult,
)
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span import BaseSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.workflow import Event, Workflow
from llama_index_instrumentation.dispatcher import active_instrument_tags
from pydantic import PrivateAttr

from llama_index.memory.rag_tuned.messages import is_user
from llama_index.memory.rag_tuned.runs import Run
from rag_tuned_memory.trajectory import Outcome

_log = logging.getLogger(__name__)

_WAITING, _DONE = "WaitingForEvent", "WorkflowDone"
"""Signs between a workflow and its steps, which older versions let pass through the spans as errors."""

P = ParamSpec("P")

MakeRun = Callable[[Mapping[str, Any], str], Run | None]
"""The run that begins with these tags and this span id; None where nobody records it."""

OnEnd = Callable[[Run, Outcome | None], None]


def _logged(handle: Callable[P, None]) -> Callable[P, None]:
    @functools.wraps(handle)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            handle(*args, **kwargs)
        except Exception:
            _log.warning("a part of a run could not be recorded", exc_info=True)

    return call


class SpanHandler(BaseSpanHandler[BaseSpan]):
    """Follows the spans of recorded runs; of others it keeps nothing."""

    _make: MakeRun = PrivateAttr()
    _end: OnEnd = PrivateAttr()
    _runs: dict[str, Run] = PrivateAttr(default_factory=dict)
    _steps: dict[str, tuple[Run, Event]] = PrivateAttr(default_factory=dict)
    _cancelled: set[str] = PrivateAttr(default_factory=set)
    _guard: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    def __init__(self, make: MakeRun) -> None:
        super().__init__()
        self._make = make
        self._end = lambda run, outcome: None

    @classmethod
    def class_name(cls) -> str:
        """The handler's name."""
        return "RagTunedMemorySpanHandler"

    def on_end(self, end: OnEnd) -> None:
        """Call ``end`` with each run that ends and its outcome (None: it waits for a person)."""
        self._end = end

    def open_runs(self) -> list[Run]:
        """Runs that have not ended; they are forgotten."""
        with self._guard:
            runs = list(self._runs.values())
            self._runs.clear()
            return runs

    def cancelled(self, span_id: str | None) -> None:
        """The step of this span was cancelled, and did not just end without a result."""
        if span_id in self._steps:
            self._cancelled.add(str(span_id))

    def new_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        parent_span_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take up a run that begins, or a step of one; its spans are kept here, not by the base class."""
        self._entered(id_, bound_args, instance, parent_span_id, tags or active_instrument_tags.get())

    def prepare_to_exit_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        result: Any | None = None,
        **kwargs: Any,
    ) -> None:
        """Record what a step, or a run, came to."""
        self._left(id_, result)

    def prepare_to_drop_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        err: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        """Record what a step, or a run, failed with."""
        self._dropped(id_, err or RuntimeError("the span was dropped"))

    @_logged
    def _entered(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any,
        parent_id: str | None,
        tags: Mapping[str, Any],
    ) -> None:
        arguments = bound_args.arguments
        if isinstance(instance, Workflow) and "start_event" in arguments:
            run = self._make(tags, id_)
            if run is not None:
                with self._guard:
                    self._runs[id_] = run
                _begun(run, arguments["start_event"])
            return
        run = self._runs.get(parent_id or "")
        event = next((one for one in arguments.values() if isinstance(one, Event)), None)
        if run is not None and event is not None:
            self._steps[id_] = (run, event)
            if isinstance(event, ToolCall):
                run.called(event)

    @_logged
    def _left(self, id_: str, result: Any) -> None:
        if (run := self._ended_run(id_)) is not None:
            self._end(run, run.ended(getattr(result, "result", result)))
            return
        run, event = self._steps.pop(id_, (None, None))
        if run is None:
            return
        if isinstance(result, AgentOutput):
            run.said(result)
        elif isinstance(result, ToolCallResult):
            run.answered(result)
        elif result is None and isinstance(event, ToolCall) and id_ not in self._cancelled:
            run.waits()
        self._cancelled.discard(id_)

    @_logged
    def _dropped(self, id_: str, error: BaseException) -> None:
        if (run := self._ended_run(id_)) is not None:
            self._end(run, run.broken(error))
            return
        run, event = self._steps.pop(id_, (None, None))
        if run is None or not isinstance(error, Exception):
            return
        sign = type(error).__name__
        if sign == _WAITING and isinstance(event, ToolCall):
            run.waits()
        elif sign not in (_WAITING, _DONE):
            run.failed(error)

    def _ended_run(self, id_: str) -> Run | None:
        with self._guard:
            return self._runs.pop(id_, None)


class EventHandler(BaseEventHandler):
    """Tells the span handler which steps were cancelled: their spans end as if they had no result."""

    _spans: SpanHandler = PrivateAttr()

    def __init__(self, spans: SpanHandler) -> None:
        super().__init__()
        self._spans = spans

    @classmethod
    def class_name(cls) -> str:
        """The handler's name."""
        return "RagTunedMemoryEventHandler"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Look for cancelled steps."""
        if event.class_name() == "SpanCancelledEvent":
            self._spans.cancelled(event.span_id)


def _begun(run: Run, start: Event | None) -> None:
    """What a run begins with; one that is gone on with begins with nothing."""
    if not isinstance(start, AgentWorkflowStartEvent):
        return
    asked = start.get("user_msg")
    history: list[ChatMessage] = start.get("chat_history") or []
    run.asked(asked or next((message for message in reversed(history) if is_user(message)), None))
