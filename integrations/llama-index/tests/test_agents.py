"""Agents with ``RagTunedMemory``, driven end to end by scripted models."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent
from scripted_llm import WAITS, Reply, ScriptedLLM, call

from conftest import texts
from llama_index.memory.rag_tuned import RagTunedMemory
from rag_tuned_memory import Memories, Memory
from rag_tuned_memory.recall.prompt import OPENING
from rag_tuned_memory.trajectory import StepKind

TESTS = Path(__file__).parent


def df(host: str) -> str:
    """How full the disk of a host is."""
    if host == "db-9":
        raise ConnectionError("db-9 does not answer")
    return f"the disk of {host} is full"


def agent(*replies: Reply, **fields: Any) -> FunctionAgent:
    return FunctionAgent(tools=[df], llm=ScriptedLLM(replies), **fields)


def shown(made: Any) -> list[list[ChatMessage]]:
    return made.llm.seen


async def stored(memory: Memory) -> list[str]:
    return [step.text async for episode in memory.aexport() for step in episode.steps]


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_agent_remembers_what_another_session_did(stored_memory: Memory, streaming: bool) -> None:
    first = agent([call("df", host="db-1")], "I removed old logs.", streaming=streaming)
    await first.run(user_msg="db-1 is slow", memory=RagTunedMemory(stored_memory, on_error="raise"))
    second = agent("Remove old logs.", streaming=streaming)
    await second.run(
        user_msg="db-1 is slow again, what helped?", memory=RagTunedMemory(stored_memory, on_error="raise")
    )
    told = str(shown(second)[0][-1].content)
    assert told.startswith(OPENING)
    assert "the disk of db-1 is full" in told
    assert "I removed old logs." in told
    assert await stored(stored_memory) == [
        "db-1 is slow",
        "",
        "the disk of db-1 is full",
        "I removed old logs.",
        "db-1 is slow again, what helped?",
        "Remove old logs.",
    ]


async def test_a_run_recalls_once(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    recall = memory._core.recall

    async def counted(query: str, **arguments: Any) -> Any:
        asked.append(query)
        return await recall(query, **arguments)

    monkeypatch.setattr(memory, "arecall", counted, raising=False)
    made = agent([call("df", host="db-1")], [call("df", "c2", host="db-2")], "Both are full.")
    await made.run(user_msg="which disks are full?", memory=RagTunedMemory(memory, on_error="raise"))
    assert asked == ["which disks are full?"]


async def test_a_react_agent_without_a_system_prompt_sees_what_is_recalled(memory: Memory) -> None:
    memory.record({"steps": [{"kind": "message", "text": "removing old logs helped db-1"}]})
    llm = ScriptedLLM(
        ['Thought: I look.\nAction: df\nAction Input: {"host": "db-1"}', "Thought: I can answer.\nAnswer: It is full."]
    )
    made = ReActAgent(tools=[df], llm=llm)
    result = await made.run(user_msg="what helped db-1?", memory=RagTunedMemory(memory, on_error="raise"))
    assert str(result) == "It is full."
    for messages in llm.seen:
        assert "removing old logs helped db-1" in str([message.content for message in messages])
    reasoning = (await stored(memory))[-1]
    assert "Observation: the disk of db-1 is full" in reasoning
    assert "Answer: It is full." in reasoning


async def test_two_agents_of_a_workflow_share_a_memory(stored_memory: Memory) -> None:
    looker = FunctionAgent(
        name="looker",
        description="Looks.",
        tools=[df],
        llm=ScriptedLLM(
            [[call("df", host="db-1")], [call("handoff", "c2", to_agent="fixer", reason="the disk of db-1 is full")]]
        ),
        can_handoff_to=["fixer"],
    )
    fixer = FunctionAgent(name="fixer", description="Fixes.", tools=[df], llm=ScriptedLLM(["I removed old logs."]))
    workflow = AgentWorkflow(agents=[looker, fixer], root_agent="looker")
    session = RagTunedMemory(stored_memory, on_error="raise")
    assert str(await workflow.run(user_msg="db-1 is slow", memory=session)) == "I removed old logs."
    episodes = [one async for one in stored_memory.aexport()]
    assert len(episodes) == 1
    tools = [step.tool for step in episodes[0].steps if step.kind is StepKind.TOOL_CALL]
    assert tools == ["df", "handoff"]
    assert episodes[0].steps[-1].text == "I removed old logs."


async def test_a_failing_tool_is_part_of_the_episode(memory: Memory) -> None:
    made = agent([call("df", host="db-9")], "It does not answer.")
    await made.run(user_msg="is db-9 full?", memory=RagTunedMemory(memory, on_error="raise"))
    assert "db-9 does not answer" in await stored(memory)


async def test_after_a_model_that_fails_the_session_goes_on(memory: Memory) -> None:
    session = RagTunedMemory(memory, on_error="raise")
    with pytest.raises(RuntimeError, match="no model"):
        await agent([call("df", host="db-1")], RuntimeError("no model")).run(user_msg="is db-1 full?", memory=session)
    assert [message.content for message in session.get_all()] == ["is db-1 full?"]
    again = agent("It is full.")
    await again.run(user_msg="and now?", memory=session)
    assert shown(again)[0][0].content == "is db-1 full?"
    assert await stored(memory) == ["is db-1 full?", "and now?", "It is full."]


async def test_a_cancelled_run_loses_no_message(memory: Memory) -> None:
    session = RagTunedMemory(memory, on_error="raise")
    slow = FunctionAgent(tools=[df], llm=ScriptedLLM(["never"], wait=60))
    handler = slow.run(user_msg="is db-1 full?", memory=session)
    for _ in range(1000):
        if session.get_all():
            break
        await asyncio.sleep(0.01)
    await handler.cancel_run()
    await session.aflush()
    assert await stored(memory) == ["is db-1 full?"]


async def test_state_in_the_prompt_is_not_stored(memory: Memory) -> None:
    session = RagTunedMemory(memory, on_error="raise")
    made = agent("It is full.", initial_state={"shift": "night"})
    await made.run(user_msg="is db-1 full?", memory=session)
    assert "night" in str(shown(made)[0][-1].content)
    assert session.get_all()[0].content == "is db-1 full?"
    assert await stored(memory) == ["is db-1 full?", "It is full."]


async def test_a_history_that_is_given_is_not_recorded(memory: Memory) -> None:
    history = [
        ChatMessage(role=MessageRole.USER, content="old"),
        ChatMessage(role=MessageRole.ASSISTANT, content="older"),
    ]
    session = RagTunedMemory(memory, on_error="raise")
    made = agent("It is full.")
    await made.run(user_msg="is db-1 full?", chat_history=history, memory=session)
    assert [message.content for message in shown(made)[0]] == ["old", "older", "is db-1 full?"]
    assert await stored(memory) == ["is db-1 full?", "It is full."]


async def test_a_history_that_ends_with_the_question(memory: Memory) -> None:
    history = [ChatMessage(role=MessageRole.USER, content="is db-1 full?")]
    await agent("It is full.").run(chat_history=history, memory=RagTunedMemory(memory, on_error="raise"))
    assert await stored(memory) == ["is db-1 full?", "It is full."]


async def test_a_tool_that_returns_directly_ends_the_turn(memory: Memory) -> None:
    from llama_index.core.tools import FunctionTool

    direct = FunctionTool.from_defaults(df, return_direct=True)
    made = FunctionAgent(tools=[direct], llm=ScriptedLLM([[call("df", host="db-1")]]))
    await made.run(user_msg="is db-1 full?", memory=RagTunedMemory(memory, on_error="raise"))
    full = "the disk of db-1 is full"
    assert await stored(memory) == ["is db-1 full?", "", full, full]


async def test_two_users_at_once_see_only_their_own(memories: Memories) -> None:
    async def work(name: str) -> list[list[ChatMessage]]:
        for turn in range(3):
            made = FunctionAgent(
                tools=[df], llm=ScriptedLLM([[call("df", host=f"{name}-{turn}")], f"{name} is done"], wait=0.002)
            )
            session = RagTunedMemory(memories, namespace=name, on_error="raise")
            await made.run(user_msg=f"is the disk of {name} full?", memory=session)
        return shown(made)

    seen = await asyncio.gather(*(work(name) for name in ("alice", "bob", "carol")))
    for name, others, messages in zip(
        ("alice", "bob", "carol"), ("bob carol", "alice carol", "alice bob"), seen, strict=True
    ):
        told = str([message.content for one in messages for message in one])
        assert f"{name} is done" in told
        assert not any(other in told for other in others.split())
    assert [len([one async for one in memories.of(name).aexport()]) for name in ("alice", "bob", "carol")] == [3, 3, 3]


# contexts


async def test_a_context_goes_on_in_this_process(memory: Memory) -> None:
    made = agent("It is full.", "You are welcome.")
    ctx = Context(made)
    await made.run(user_msg="is db-1 full?", memory=RagTunedMemory(memory, on_error="raise"), ctx=ctx)
    await made.run(user_msg="thank you", ctx=ctx)
    assert [message.content for message in shown(made)[1]] == ["is db-1 full?", "It is full.", "thank you"]
    assert await stored(memory) == ["is db-1 full?", "It is full.", "thank you", "You are welcome."]
    assert (await ctx.store.get("memory"))._session.link().memory is memory


async def test_a_tool_that_edits_the_state_keeps_the_session(memory: Memory) -> None:
    async def note(ctx: Context, text: str) -> str:
        """Take a note."""
        async with ctx.store.edit_state() as state:
            state["note"] = text
        return "noted"

    note.__annotations__["ctx"] = Context  # as text it is not seen to be the context
    made = FunctionAgent(tools=[note], llm=ScriptedLLM([[call("note", text="full")], "I took a note."]))
    session = RagTunedMemory(memory, on_error="raise")
    await made.run(user_msg="note it", memory=session)
    assert [message.content for message in session.get_all()] == ["note it", None, "noted", "I took a note."]


@pytest.mark.skipif(not WAITS, reason="this version of llama-index-core takes waiting for an error")
async def test_a_run_that_waits_for_a_person_goes_on_from_its_context(memory: Memory) -> None:
    async def ask(ctx: Context) -> str:
        """Ask a person."""
        event = await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="may I?"))
        return f"the person said {event.response}"

    ask.__annotations__["ctx"] = Context
    made = FunctionAgent(tools=[ask], llm=ScriptedLLM([[call("ask")], "Done."]))
    handler = made.run(user_msg="do it", memory=RagTunedMemory(memory, on_error="raise"))
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            break
    await asyncio.sleep(0.05)
    state = json.loads(json.dumps(handler.ctx.to_dict()))
    await handler.cancel_run()
    handler = made.run(ctx=Context.from_dict(made, state))
    await asyncio.sleep(0.05)
    handler.ctx.send_event(HumanResponseEvent(response="yes"))
    assert str(await handler) == "Done."
    assert await stored(memory) == ["do it", "", "the person said yes", "Done."]


async def test_a_context_goes_on_in_another_process(stored_memory: Memory) -> None:
    made = agent("It is full.")
    ctx = Context(made)
    await made.run(user_msg="is db-1 full?", memory=RagTunedMemory(stored_memory, on_error="raise"), ctx=ctx)
    stored_memory.record({"steps": [{"kind": "message", "text": "removing old logs helped db-1"}]})
    script = f"""
import asyncio, json, sys
sys.path.insert(0, {str(TESTS)!r})
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent
from scripted_llm import ScriptedLLM

async def main():
    agent = FunctionAgent(tools=[], llm=ScriptedLLM(["Remove old logs."]))
    ctx = Context.from_dict(agent, json.load(sys.stdin))
    await agent.run(user_msg="what helped db-1?", ctx=ctx)
    print(json.dumps([message.content for message in agent.llm.seen[0]]))

asyncio.run(main())
"""
    state = json.dumps(ctx.to_dict())
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], input=state, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen[:2] == ["is db-1 full?", "It is full."]
    assert "removing old logs helped db-1" in seen[2]
    assert (await stored(stored_memory))[-2:] == ["what helped db-1?", "Remove old logs."]


def test_a_killed_process_loses_no_message(memory: Memory) -> None:
    script = f"""
import os, signal
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.memory.rag_tuned import RagTunedMemory
from rag_tuned_memory import Memory, Settings

settings = Settings(home={str(memory.settings.home)!r}, embedder="hashing")
session = RagTunedMemory(Memory("alice", settings=settings), on_error="raise")
session.put(ChatMessage(role=MessageRole.USER, content="the disk of db-1 is full"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    session = RagTunedMemory(memory, on_error="raise")
    session.put(ChatMessage(role=MessageRole.USER, content="which disk is full?"))
    assert "the disk of db-1 is full" in str(session.get()[-1].content)
    assert texts(memory) == ["the disk of db-1 is full"]


def test_importing_asks_for_nothing() -> None:
    script = (
        "import sys; import llama_index.memory.rag_tuned as package;"
        "heavy = ['torch', 'weaviate', 'rag_tuned_memory', 'llama_index.core'];"
        "print([name for name in heavy if name in sys.modules]);"
        "print(sorted(package.__all__) == sorted(name for name in dir(package) if name in package.__all__));"
        "package.RagTunedMemory, package.RagTunedMemoryBlock, package.TrajectoryRecorder, package.RecordedRun;"
        "print([name for name in ('torch', 'weaviate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split("\n")[:3] == ["[]", "True", "[]"]
