"""A run that waits for somebody is one episode, whoever goes on with it and wherever."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command, interrupt
from scripted_agent import Flavour, ScriptedChat, calls, episodes, run, script, thread, told

from langchain_rag_tuned_memory import RagTunedMemoryMiddleware
from rag_tuned_memory import Memory, Outcome

pytestmark = pytest.mark.parametrize("flavour", ["sync", "async"])


def look(at: str) -> str:
    """Look at something."""
    return f"the {at} is full"


def purge(at: str) -> str:
    """Asks before it does anything."""
    return f"purged {at}" if interrupt(f"purge {at}?") else "left it"


@asynccontextmanager
async def saver(kind: str, flavour: Flavour, path: Path) -> AsyncIterator[Any]:
    """A checkpointer as another process would open it: on the same file, where it has one."""
    if kind == "memory":
        yield InMemorySaver()
    elif flavour == "async":
        async with AsyncExitStack() as stack:
            yield await stack.enter_async_context(AsyncSqliteSaver.from_conn_string(str(path / "c.db")))
    else:
        with ExitStack() as stack:
            yield stack.enter_context(SqliteSaver.from_conn_string(str(path / "c.db")))


async def test_an_interrupt_is_a_pause(memory: Memory, flavour: Flavour) -> None:
    model = script(calls(("look", {"at": "disk"}, "c1"), ("purge", {"at": "logs"}, "c2")), "done")
    agent = create_agent(
        model, [look, purge], middleware=[RagTunedMemoryMiddleware(memory)], checkpointer=InMemorySaver()
    )
    waiting = await run(agent, flavour, "check orion", config=thread())
    assert waiting["__interrupt__"]
    (paused,) = episodes(memory)
    assert (paused.outcome, paused.ended_at) == (Outcome(), None)
    assert told(paused) == [
        "message user: check orion",
        'tool_call c1: look({"at": "disk"})',
        'tool_call c2: purge({"at": "logs"})',
        "tool_result c1: the disk is full",
    ]
    await run(agent, flavour, Command(resume=True), config=thread())
    (episode,) = episodes(memory)
    assert told(episode) == [*told(paused), "tool_result c2: purged logs", "message assistant: done"]
    assert episode.ended_at is not None
    assert episode.steps[:4] == paused.steps


@pytest.mark.parametrize("gone", ["closed", "killed"])
async def test_another_process_goes_on_with_it(memory: Memory, flavour: Flavour, tmp_path: Path, gone: str) -> None:
    """New objects on the same files: memory is recalled again, and the record is the same one."""
    memory.record({"steps": [{"kind": "message", "text": "orion: purge the old logs only"}]})
    kept = []
    seen = []
    for step in range(2):
        own = RagTunedMemoryMiddleware(memory)
        kept.append(own)  # an object that is collected stores what is open
        model = script(calls(("purge", {"at": "logs"}, "c1"))) if step == 0 else script("done")
        async with saver("sqlite", flavour, tmp_path) as checkpointer:
            agent = create_agent(model, [purge], middleware=[own], checkpointer=checkpointer)
            await run(agent, flavour, "check orion" if step == 0 else Command(resume=True), config=thread())
        seen.append(model.injected)
        if gone == "closed":
            own.close()
    (episode,) = episodes(memory)
    assert told(episode)[1:] == [
        'tool_call c1: purge({"at": "logs"})',
        "tool_result c1: purged logs",
        "message assistant: done",
    ]
    assert all("purge the old logs only" in text for texts in seen for text in texts), "memory is lost by a resume"
    assert seen[0] == seen[1], "the run recalls itself"


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("decision", ["approve", "edit", "reject"])
async def test_beside_the_human_in_the_loop_middleware(
    memory: Memory, flavour: Flavour, tmp_path: Path, kind: str, decision: str
) -> None:
    """It interrupts in a node of its own, which ours does not see; the human may change or refuse a call."""
    memory.record({"steps": [{"kind": "message", "text": "orion: purge the old logs only"}]})
    model = script(calls(("look", {"at": "disk"}, "c1")), "done")
    human = HumanInTheLoopMiddleware(interrupt_on={"look": True})
    answers: dict[str, Any] = {
        "approve": {"type": "approve"},
        "edit": {"type": "edit", "edited_action": {"name": "look", "args": {"at": "fan"}}},
        "reject": {"type": "reject", "message": "not now"},
    }
    own = RagTunedMemoryMiddleware(memory)
    async with saver(kind, flavour, tmp_path) as checkpointer:
        agent = create_agent(model, [look], middleware=[own, human], checkpointer=checkpointer)
        waiting = await run(agent, flavour, "check orion", config=thread())
        assert waiting["__interrupt__"]
        resume = Command(resume={"decisions": [answers[decision]]})
        if kind == "sqlite":
            own = RagTunedMemoryMiddleware(memory)
            agent = create_agent(model, [look], middleware=[own, human], checkpointer=checkpointer)
        await run(agent, flavour, resume, config=thread())
    (episode,) = episodes(memory)
    lines = told(episode)
    assert [line.split(":")[0] for line in lines] == [
        "message user",
        "tool_call c1",
        "tool_result c1",
        "message assistant",
    ]
    expected = {"approve": "the disk is full", "edit": "the fan is full", "reject": "not now"}
    assert expected[decision] in lines[2]
    assert bool(episode.steps[2].error) == (decision == "reject")
    assert ("fan" in lines[1] + lines[2]) == (decision == "edit"), "what was done instead is told"
    assert all("purge the old logs only" in text for text in model.injected)


async def test_a_pause_that_nobody_ends_is_stored_when_the_conversation_goes_on(
    memory: Memory, flavour: Flavour
) -> None:
    human = HumanInTheLoopMiddleware(interrupt_on={"look": True})
    model = script(calls(("look", {"at": "disk"}, "c1")), "never mind then")
    agent = create_agent(
        model, [look], middleware=[RagTunedMemoryMiddleware(memory), human], checkpointer=InMemorySaver()
    )
    await run(agent, flavour, "check orion", config=thread())
    assert episodes(memory) == []
    await run(agent, flavour, "forget it", config=thread())
    first, second = sorted(episodes(memory), key=lambda one: one.goal)
    assert told(first) == ["message user: check orion", 'tool_call c1: look({"at": "disk"})']
    assert told(second)[0] == "message user: forget it"
    assert told(second)[-1] == "message assistant: never mind then"


async def test_several_interrupts_one_after_the_other(memory: Memory, flavour: Flavour) -> None:
    def twice(at: str) -> str:
        """Asks two times."""
        return f"{interrupt('first?')} {interrupt('second?')}"

    model = script(calls(("twice", {"at": "a"}, "c1"), ("twice", {"at": "b"}, "c2")), "done")
    agent = create_agent(model, [twice], middleware=[RagTunedMemoryMiddleware(memory)], checkpointer=InMemorySaver())
    waiting = await run(agent, flavour, "check orion", config=thread())
    for answer in ("one", "two"):
        resume = Command(resume={one.id: answer for one in waiting["__interrupt__"]})
        waiting = await run(agent, flavour, resume, config=thread())
    (episode,) = episodes(memory)
    assert told(episode)[-3:] == ["tool_result c1: one two", "tool_result c2: one two", "message assistant: done"]
    assert len(episode.steps) == 6


async def test_time_travel_stays_one_episode(memory: Memory, flavour: Flavour) -> None:
    """A run that is replayed from a checkpoint gets new answers; those before stay, the calls are not doubled."""
    answers = iter(["first answer", "second answer"])

    def answer(messages: Any) -> Any:
        return calls(("look", {"at": "disk"}, "c1")) if messages[-1].type == "human" else next(answers)

    model = ScriptedChat(answer=answer)
    agent = create_agent(model, [look], middleware=[RagTunedMemoryMiddleware(memory)], checkpointer=InMemorySaver())
    await run(agent, flavour, "check orion", config=thread())
    before = [one for one in agent.get_state_history(thread()) if one.next == ("model",)]
    await run(agent, flavour, None, config=before[0].config)
    (episode,) = episodes(memory)
    assert told(episode) == [
        "message user: check orion",
        'tool_call c1: look({"at": "disk"})',
        "tool_result c1: the disk is full",
        "message assistant: first answer",
        "message assistant: second answer",
    ]


async def test_a_fork_with_another_question_is_another_episode(memory: Memory, flavour: Flavour) -> None:
    model = script("one", "two")
    agent = create_agent(model, middleware=[RagTunedMemoryMiddleware(memory)], checkpointer=InMemorySaver())
    await run(agent, flavour, "first", config=thread())
    start = [one for one in agent.get_state_history(thread()) if one.next == ("__start__",)][-1]
    await run(agent, flavour, {"messages": [("user", "instead")]}, config=start.config)
    assert sorted(one.goal for one in episodes(memory)) == ["first", "instead"]


async def test_a_killed_process_loses_nothing(memory: Memory, flavour: Flavour, tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import asyncio, os, sys
        from langchain.agents import create_agent
        from langgraph.checkpoint.sqlite import SqliteSaver
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
        from langchain_rag_tuned_memory import RagTunedMemoryMiddleware
        from rag_tuned_memory import Memory, Settings
        from scripted_agent import calls, script

        def look(at: str) -> str:
            "Look."
            return f"the {{at}} is full"

        def dies(at: str) -> str:
            "Ends the process at once."
            os._exit(9)

        memory = Memory("operations", settings=Settings(home={str(memory.settings.home)!r}, embedder="hashing"))
        model = script(calls(("look", {{"at": "disk"}}, "c1")), calls(("dies", {{"at": "disk"}}, "c2")))
        given, config = {{"messages": [("user", "check orion")]}}, {{"configurable": {{"thread_id": "t"}}}}

        async def main():
            async with AsyncSqliteSaver.from_conn_string({str(tmp_path / "c.db")!r}) as saver:
                own = RagTunedMemoryMiddleware(memory)
                agent = create_agent(model, [look, dies], middleware=[own], checkpointer=saver)
                await agent.ainvoke(given, config, durability="sync")

        if {flavour!r} == "async":
            asyncio.run(main())
        with SqliteSaver.from_conn_string({str(tmp_path / "c.db")!r}) as saver:
            own = RagTunedMemoryMiddleware(memory)
            agent = create_agent(model, [look, dies], middleware=[own], checkpointer=saver)
            agent.invoke(given, config, durability="sync")
        """
    )
    path = [str(Path(__file__).parents[1]), *sys.path]
    killed = await anyio.run_process([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(path)}, check=False)
    assert killed.returncode == 9, killed.stderr.decode()
    assert episodes(memory) == []

    def dies(at: str) -> str:
        """Does not, this time."""
        return "alive"

    async with saver("sqlite", flavour, tmp_path) as checkpointer:
        own = RagTunedMemoryMiddleware(memory)
        agent = create_agent(script("done"), [look, dies], middleware=[own], checkpointer=checkpointer)
        await run(agent, flavour, None, config=thread())
        await run(create_agent(script("hello"), middleware=[own]), flavour, "another run recovers what is left")
    (episode,) = [one for one in episodes(memory) if one.goal == "check orion"]
    assert told(episode) == [
        "message user: check orion",
        'tool_call c1: look({"at": "disk"})',
        "tool_result c1: the disk is full",
        'tool_call c2: dies({"at": "disk"})',
        "tool_result c2: alive",
        "message assistant: done",
    ]


@pytest.fixture(autouse=True)
def _no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged: the state is plain JSON, and no step is refused."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
