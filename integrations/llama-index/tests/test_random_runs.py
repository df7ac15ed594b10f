"""1,000 agent runs made at random, with failures injected: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from random_runs import PUT, UnreliableStore, User

from llama_index.memory.rag_tuned import RagTunedMemory, TrajectoryRecorder, live
from rag_tuned_memory import Memories, Memory, Settings
from rag_tuned_memory.store import open_store
from rag_tuned_memory.trajectory import StepKind, Trajectory

RUNS = 1000
ROUNDS = 10
USERS = ("alice", "bob")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_nothing_is_lost(settings: Settings, seed: int) -> None:
    dice = random.Random(seed)
    store = UnreliableStore(open_store(settings.store_url), dice)
    memories = Memories(settings=settings, store=store)
    recorder = TrajectoryRecorder(memories)
    users = [User(name, random.Random(f"{seed} {name}"), memories, recorder) for name in USERS]
    await asyncio.gather(*(user.work(RUNS // ROUNDS // len(USERS), store) for user in users))
    store.share = 0.0
    await asyncio.to_thread(recorder.close)
    await asyncio.to_thread(live.link_to(memories).recorder.close)
    for user in users:
        messages_are_there(user, await episodes(memories.of(user.name)))
        runs_are_there(user, await episodes(memories.of(f"{user.name}-runs")))
    assert store.failures
    assert {seen.ended for user in users for seen in user.seen} == {"answered", "failed", "cancelled"}
    await asyncio.to_thread(memories.close)
    await store.close()


async def episodes(memory: Memory) -> list[Trajectory]:
    return [one async for one in memory.aexport()]


def messages_are_there(user: User, found: list[Trajectory]) -> None:
    """Every message that the user's memories were given is a step, once."""
    stored = Counter(step.text for episode in found for step in episode.steps if step.text)
    assert stored == PUT[user.name]
    questions = [seen.question for seen in user.seen]
    assert sorted(episode.goal for episode in found) == sorted(question for question in questions if stored[question])


def runs_are_there(user: User, found: list[Trajectory]) -> None:
    """Every run is one episode with all that its model and its tools said."""
    by_goal = {episode.goal: episode for episode in found}
    assert len(by_goal) == len(found)
    for seen in user.seen:
        if seen.ended == "cancelled" and seen.question not in by_goal:
            continue  # before it began
        episode = by_goal[seen.question]
        if seen.ended != "cancelled":  # that may come while the run fails
            assert episode.outcome.success is (None if seen.ended == "answered" else False)
        told = Counter(  # an answer that was stopped on its way still has its reasoning before it
            (step.error or "").removeprefix("ConnectionError: ") or step.text.rpartition("Answer: ")[2]
            for step in episode.steps
            if step.kind in (StepKind.TOOL_RESULT, StepKind.MESSAGE) and step.tool != "handoff"
        )
        if seen.ended == "answered":
            assert told == Counter([seen.question, *seen.texts])
        else:
            assert not told - Counter([seen.question, *seen.texts])
        if seen.ended == "failed":
            looked = [text for text in seen.texts if "is looked at" in text]
            assert not Counter(looked) - told


KILLED = """
import asyncio, random, sys
sys.path.insert(0, {tests!r})
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.memory.rag_tuned import RagTunedMemory
from llama_index.memory.rag_tuned.messages import text_of
from rag_tuned_memory import Memory, Settings
from scripted_llm import ScriptedLLM, call

class Told(RagTunedMemory):
    async def aput_messages(self, messages):
        await super().aput_messages(messages)
        for message in messages:
            if text_of(message):
                print(text_of(message), flush=True)

def look(host: str) -> str:
    "Look at a host."
    return f"{{host}} is looked at"

async def main():
    memory = Memory("alice", settings=Settings(home={home!r}, embedder="hashing"))
    number = 0
    while True:
        number += 1
        name = "{name}-" + str(number)
        llm = ScriptedLLM([[call("look", host=name)], f"answer {{name}}"])
        agent = FunctionAgent(tools=[look], llm=llm)
        await agent.run(user_msg=f"question {{name}}", memory=Told(memory, on_error="raise"))

asyncio.run(main())
"""


def test_killed_processes_lose_nothing(settings: Settings) -> None:
    acknowledged: list[str] = []
    dice = random.Random(7)
    for name in ("one", "two", "three"):
        script = KILLED.format(tests=str(Path(__file__).parent), home=str(settings.home), name=name)
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        acknowledged.append(process.stdout.readline().strip())
        time.sleep(dice.uniform(0.05, 0.5))
        process.kill()
        lines = process.stdout.read().split("\n")
        acknowledged += lines[:-1]  # the last one may have been cut off
        process.wait()
    assert len(acknowledged) > 6
    with Memory("alice", settings=settings) as memory:
        session = RagTunedMemory(memory, on_error="raise")
        session.put(ChatMessage(role=MessageRole.USER, content="what was looked at?"))
        session.get()  # what killed processes left is stored before the first recall
        stored = Counter(step.text for episode in memory.export() for step in episode.steps if step.text)
    assert not Counter(acknowledged) - stored
    assert max(stored.values()) == 1
