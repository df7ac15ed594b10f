"""A single run recorded from its stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Self

from llama_index.core.agent.workflow import AgentInput, AgentOutput, ToolCall, ToolCallResult
from llama_index.core.workflow import Event, InputRequiredEvent
from workflows.handler import WorkflowHandler

from llama_index.memory.rag_tuned.messages import is_user
from llama_index.memory.rag_tuned.runs import Run
from rag_tuned_memory.trajectory import Outcome

Store = Callable[[Run, Outcome | None], Awaitable[None]]

_PATIENCE = 0.2
"""Seconds to wait for the last events of a run that has ended; one that was aborted sends no last one."""


class RecordedRun:
    """A run under way, recorded: await it for the result, or iterate over its events first and then await it.

    When awaiting it returns or raises, the episode is stored.
    """

    def __init__(self, handler: WorkflowHandler, run: Run, store: Store) -> None:
        self.handler = handler
        self._run = run
        self._store = store
        self._events = handler.stream_events()
        self._stored = False

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._result().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event: Event = await anext(self._events)
        self._see(event)
        return event

    async def _result(self) -> Any:
        reader = asyncio.ensure_future(self._read())
        try:
            try:
                result = await self.handler
            finally:
                await asyncio.wait({reader}, timeout=_PATIENCE)
                reader.cancel()
        except BaseException as error:
            await self._end(self._run.broken(error))
            raise
        await self._end(self._run.ended(result))
        return result

    async def _read(self) -> None:
        """Read the events that nobody has read."""
        async for _ in self:
            pass

    async def _end(self, outcome: Outcome | None) -> None:
        if not self._stored:
            self._stored = True
            await self._store(self._run, outcome)

    def _see(self, event: Event) -> None:
        if isinstance(event, AgentInput):
            self._run.asked(next((message for message in reversed(event.input) if is_user(message)), None))
        elif isinstance(event, AgentOutput):
            self._run.said(event)
        elif isinstance(event, ToolCall):
            self._run.called(event)
        elif isinstance(event, ToolCallResult):
            self._run.answered(event)
        elif isinstance(event, InputRequiredEvent):
            self._run.waits()
