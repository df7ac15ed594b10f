"""What ``RagTunedMemoryMiddleware`` adds to the time of a model call, beside an agent without it.

Run it with ``python benchmarks/langchain_overhead/run.py``; it writes ``result.json`` beside this file. The agents are
the same but for the middleware, which records and recalls nothing (``mode="record"``). Their model answers from a
script in no time and calls one tool each time. They take turns with the same run; of each step the time from the end of
one model call to the end of the next is taken, and the overhead is the difference to the agent without any middleware
in the same turn: it holds all that the middleware does for the model call and for the tool call before it. What it does
once a run (beginning the episode; embedding and storing it at the end) is told apart, as the difference of whole runs
less that. A third agent has a middleware whose hooks do nothing: what having hooks costs at all. CPU time is the whole
process's: it does not grow when other programs have the processor.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import Field

from langchain_rag_tuned_memory import RagTunedMemoryMiddleware
from rag_tuned_memory import Memory, Settings
from rag_tuned_memory.evaluation.stamp import code_hash, machine, versions

HERE = Path(__file__).parent
RESULT = "the disk of orion is full: 91 % used, 12 GB free, oldest log 34 days " * 8
CASES = (
    ("sync", False, False, 20),
    ("async", True, False, 20),
    ("async, checkpoints in memory", True, True, 20),
    ("async, 100 calls a run", True, False, 100),
)
"""Name, awaited, with a checkpointer, model calls a run."""


Taken = tuple[list[tuple[float, float]], float]
"""Milliseconds of each step of a run, of wall and of CPU time, and wall milliseconds of the whole run."""


class Instant(BaseChatModel):
    """Calls a tool ``calls`` times, then answers; ``ended`` are wall and CPU times at which it had answered."""

    calls: int
    ended: list[tuple[float, float]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "instant"

    def bind_tools(self, tools: Sequence[Any], **options: Any) -> Runnable[Any, Any]:
        """It calls its tool by heart."""
        return self

    def _generate(self, messages: list[BaseMessage], *given: Any, **options: Any) -> ChatResult:
        number = len(self.ended)
        call = {"name": "look", "args": {"at": f"part {number}"}, "id": f"call-{number}"}
        last = number == self.calls - 1
        message = AIMessage("done" if last else "I will look.", tool_calls=[] if last else [call])
        self.ended.append((time.perf_counter(), time.process_time()))
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages: list[BaseMessage], *given: Any, **options: Any) -> ChatResult:
        return self._generate(messages)


@tool
def look(at: str) -> str:
    """Look at a part."""
    return RESULT


@tool("look")
async def alook(at: str) -> str:
    """Look at a part."""
    return RESULT


class Nothing(AgentMiddleware[Any, Any, Any]):
    """Has the hooks, and does nothing in them."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        """Hand on."""
        return handler(request)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        """Hand on."""
        return await handler(request)

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        """Hand on."""
        return handler(request)

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        """Hand on."""
        return await handler(request)


class Contestant:
    """One of the agents."""

    def __init__(
        self, middleware: AgentMiddleware[Any, Any, Any] | None, *, awaited: bool, checkpoints: bool, calls: int
    ) -> None:
        self.model = Instant(calls=calls)
        self.awaited = awaited
        self.agent = create_agent(
            self.model,
            [alook if awaited else look],
            middleware=[middleware] if middleware else [],
            checkpointer=InMemorySaver() if checkpoints else None,
        )

    def run(self, number: int) -> Taken:
        """Run it once."""
        self.model.ended.clear()
        given: Any = {"messages": [HumanMessage(f"check orion {number}")]}
        config: Any = {"configurable": {"thread_id": str(number)}, "recursion_limit": 10_000}
        began = time.perf_counter()
        if self.awaited:
            asyncio.run(self.agent.ainvoke(given, config))
        else:
            self.agent.invoke(given, config)
        took = time.perf_counter() - began
        pairs = itertools.pairwise(self.model.ended)
        return [(1000 * (b[0] - a[0]), 1000 * (b[1] - a[1])) for a, b in pairs], 1000 * took


def measure(memory: Memory, awaited: bool, checkpoints: bool, calls: int, turns: int) -> dict[str, Any]:
    """Figures of one case, in milliseconds."""
    options: dict[str, Any] = {"awaited": awaited, "checkpoints": checkpoints, "calls": calls}
    own = RagTunedMemoryMiddleware(memory, mode="record")
    agents = [Contestant(middleware, **options) for middleware in (None, own, Nothing())]
    for agent in agents:
        agent.run(-1)
        agent.run(-2)
    taken: list[list[Taken]] = []
    for number in range(turns):
        # Who goes first changes, so that none always follows the same one.
        order = [(number + place) % 3 for place in range(3)]
        runs = {one: agents[one].run(number) for one in order}
        taken.append([runs[one] for one in range(3)])
    own.close()
    once = [ours[1] - bare[1] - sum(_added(ours, bare, 0)) for bare, ours, _ in taken]
    return {
        "added_a_model_call": _figures(one for bare, ours, _ in taken for one in _added(ours, bare, 0)),
        "added_a_model_call_cpu": _figures(one for bare, ours, _ in taken for one in _added(ours, bare, 1)),
        "added_by_a_middleware_that_does_nothing": _figures(
            one for bare, _, nothing in taken for one in _added(nothing, bare, 0)
        ),
        "step_of_the_agent_without_it": _figures(step[0] for bare, _, _ in taken for step in bare[0]),
        "added_once_a_run": _figures(once),
        "pairs": turns * (calls - 1),
    }


def _added(one: Taken, other: Taken, kind: int) -> list[float]:
    """What the steps of ``one`` took longer, by wall (0) or CPU time (1)."""
    return [step[kind] - beside[kind] for step, beside in zip(one[0], other[0], strict=True)]


def _figures(milliseconds: Iterable[float]) -> dict[str, float]:
    ordered = sorted(milliseconds)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 3),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=40, help="runs of each agent, a fifth of it for the longest")
    parser.add_argument("--embedder", default="hashing", help="what embeds the episode at the end of a run")
    parser.add_argument("--output", type=Path, default=HERE / "result.json")
    given = parser.parse_args()
    load_before = os.getloadavg()[0]
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder), embedder=given.embedder)
        for number, (name, awaited, checkpoints, calls) in enumerate(CASES):
            with Memory(f"case-{number}", settings=settings) as memory:
                turns = max(2, given.turns * 20 // calls)
                cases[name] = measure(memory, awaited, checkpoints, calls, turns)
    libraries = {name: version(name) for name in ("langchain", "langchain-core", "langgraph")}
    result = {
        "unit": "ms",
        "embedder": given.embedder,
        "cases": cases,
        "load_average": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "stamp": {"code_sha256": code_hash(), "versions": {**versions(), **libraries}, "machine": machine()},
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    for name, case in cases.items():
        print(f"{name}: {json.dumps(case)}")


if __name__ == "__main__":
    main()
