"""The operations world of the demo, alive: an incident that tools look at and end, and an operator who knows how.

`gets_better.py` is an agent in it, and so is `benchmarks/langchain_agent`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool, StructuredTool, ToolException

from langchain_rag_tuned_memory import RagTunedMemoryMiddleware
from rag_tuned_memory import Memory, Outcome
from rag_tuned_memory.demo.world import REMEDIES, SERVICES
from rag_tuned_memory.trajectory import StepKind, Trajectory

SYSTEM = "You are an operations agent. Look at the incident, find its cause, fix it, and close it."


@dataclass
class Incident:
    """One incident: what is wrong, and what was done about it. Only the right fix clears the alert."""

    goal: str
    name: str
    service: str
    cause: str
    cleared: bool = False
    closed: bool = False
    wrong_fixes: int = 0

    @classmethod
    def of(cls, history: Trajectory) -> Incident:
        """The incident that a generated history tells of."""
        name = re.search(r"INC-\d+", history.goal)
        thought = next(step.text for step in history.steps if step.kind is StepKind.THOUGHT)
        service = next(one for one in SERVICES if one in history.goal)
        return cls(history.goal, name[0] if name else "", service, thought.partition("point to: ")[2].rstrip("."))

    @property
    def over(self) -> bool:
        """Whether the alert is cleared and the incident closed."""
        return self.cleared and self.closed

    def tools(self) -> list[BaseTool]:
        """What an agent can do; a fix that does not help is an error."""
        known = REMEDIES.values()
        fixes = [_tool(self._fix(one.tool), one.tool, f"{one.fix.capitalize()}.") for one in known]
        return [
            _tool(self._get_alert, "get_alert", "The service that an incident is about, and its alert."),
            _tool(self._read_logs, "read_logs", "The last lines of a service's log."),
            *fixes,
            _tool(self._close, "close_incident", "Close an incident that is over.", ends=True),
        ]

    def _get_alert(self, incident: str) -> str:
        if incident != self.name:
            raise ToolException(f"there is no incident {incident}")
        return json.dumps({"service": self.service, "status": "resolved" if self.cleared else "firing"})

    def _read_logs(self, service: str, lines: int) -> str:
        self._check(service)
        return REMEDIES[self.cause].log

    def _fix(self, tool: str) -> Any:
        def fix(service: str) -> str:
            self._check(service)
            if tool != REMEDIES[self.cause].tool:
                self.wrong_fixes += 1
                raise ToolException("no change: the alert is still firing")
            self.cleared = True
            return "done, the alert cleared"

        return fix

    def _close(self, incident: str, cause: str, fix: str) -> str:
        if incident != self.name:
            raise ToolException(f"there is no incident {incident}")
        self.closed = True
        return "recorded"

    def _check(self, service: str) -> None:
        if service != self.service:
            raise ToolException(f"nothing is wrong with {service}")


def _tool(function: Any, name: str, description: str, *, ends: bool = False) -> BaseTool:
    return StructuredTool.from_function(
        function, name=name, description=description, handle_tool_error=True, return_direct=ends
    )


class Operator(BaseChatModel):
    """A script, not a model: does what the agent of a generated history did, turn by turn."""

    turns: list[AIMessage]

    @classmethod
    def of(cls, history: Trajectory) -> Operator:
        """The agent's turns of a history."""
        turns, said = [], ""
        for step in history.steps:
            if step.kind is StepKind.THOUGHT:
                said = step.text
            elif step.kind is StepKind.TOOL_CALL:
                call = {"name": step.tool, "args": step.arguments or {}, "id": f"{history.source_id}-{step.call_id}"}
                turns.append(AIMessage(said, tool_calls=[call]))
                said = ""
        return cls(turns=turns)

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """A script needs not be told of tools."""
        return self

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        since = next(place for place, one in enumerate(reversed(messages)) if isinstance(one, HumanMessage))
        done = sum(isinstance(one, AIMessage) for one in messages[len(messages) - since :])
        return ChatResult(generations=[ChatGeneration(message=self.turns[done].model_copy(deep=True))])

    @property
    def _llm_type(self) -> str:
        return "operator"


def operate(memory: Memory, history: Trajectory) -> None:
    """Let the operator do what a generated history tells; the middleware records it. Doing it again changes nothing."""
    incident = Incident.of(history)
    recorder = RagTunedMemoryMiddleware(memory, mode="record", outcome=lambda _: Outcome(success=incident.cleared))
    agent = create_agent(Operator.of(history), incident.tools(), system_prompt=SYSTEM, middleware=[recorder])
    message = {"role": "user", "content": incident.goal, "id": f"asked-{incident.name}"}
    agent.invoke({"messages": [message]}, {"configurable": {"thread_id": incident.name}})
    recorder.close()
