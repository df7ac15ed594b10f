"""Random runs of an agent with failures and interrupts, each recorded by callbacks: nothing is lost, nothing twice."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from scripted_agent import Flavour, ScriptedChat, calls, episodes, run

from langchain_rag_tuned_memory import TrajectoryRecorder
from rag_tuned_memory import Memories, Step, StepKind

RUNS = 150


@dataclass
class World:
    """What really happened in one run: each answer, and how each call ended last."""

    chance: random.Random
    answers: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, messages: list[BaseMessage]) -> AIMessage:
        if self.chance.random() < 0.12:
            raise RuntimeError("overloaded")
        text = f"answer {len(self.answers)}"
        self.answers.append(text)
        several = self.chance.randrange(4) if len(self.answers) < 4 else 0
        names = [f"c{len(self.calls) + number}" for number in range(several)]
        self.calls += names
        return calls(*(("work", {"name": name}, name) for name in names), text=text)

    def work(self, name: str) -> str:
        with self.lock:
            fate = self.chance.random()
        if fate < 0.15:
            self.results[name] = f"!ValueError: {name} failed"
            raise ValueError(f"{name} failed")
        said = interrupt(name) if fate < 0.35 else "at once"
        self.results[name] = f"{name} {said}"
        return f"{name} {said}"


def agent_of(world: World, saver: InMemorySaver) -> Any:
    @tool
    def work(name: str) -> str:
        """Works."""
        return world.work(name)

    return create_agent(ScriptedChat(answer=world.answer), [work], checkpointer=saver)


async def play(memories: Memories, seed: int, flavour: Flavour) -> World:
    """One run, gone on with by a new recorder after each interrupt and each failure."""
    world, saver, user = World(random.Random(seed)), InMemorySaver(), f"user-{seed}"
    given: Any = {"messages": [("user", "go")]}
    for _ in range(30):
        with TrajectoryRecorder(memories, on_error="raise") as recorder:
            config = {
                "callbacks": [recorder],
                "configurable": {"thread_id": f"t-{seed}"},
                "metadata": {"namespace": user},
            }
            try:
                state = await run(agent_of(world, saver), flavour, given, config=config)
            except (RuntimeError, ValueError):
                given = None
                continue
        if "__interrupt__" not in state:
            break
        given = Command(resume={one.id: "they say yes" for one in state["__interrupt__"]})
    return world


def told(step: Step) -> str:
    return f"!{step.error}" if step.error else step.text


@pytest.mark.parametrize("flavour", ["sync", "async"])
async def test_nothing_is_lost_and_nothing_is_twice(memories: Memories, flavour: Flavour) -> None:
    waited = failed = 0
    for seed in range(RUNS):
        world = await play(memories, seed, flavour)
        (one,) = episodes(memories.of(f"user-{seed}"))
        said = [step.text for step in one.steps if step.kind is StepKind.MESSAGE and step.actor == "assistant"]
        assert Counter(said) == Counter(world.answers), seed
        made = [step.call_id for step in one.steps if step.kind is StepKind.TOOL_CALL]
        assert Counter(made) == Counter(world.calls), seed
        results = {step.call_id: told(step) for step in one.steps if step.kind is StepKind.TOOL_RESULT}
        assert results == world.results, seed
        assert len(results) == len([step for step in one.steps if step.kind is StepKind.TOOL_RESULT])
        waited += any("they say yes" in result for result in results.values())
        failed += any(step.error for step in one.steps)
    assert waited > RUNS / 10
    assert failed > RUNS / 10
