"""``TrajectoryRecorder``: agent runs recorded from LlamaIndex's instrumentation, and from a run's stream."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent, StopEvent
from scripted_llm import WAITS, Reply, ScriptedLLM, call
from workflows.errors import WorkflowCancelledByUser

from llama_index.memory.rag_tuned import RagTunedMemory, TrajectoryRecorder
from rag_tuned_memory import Memories, Memory, Trajectory
from rag_tuned_memory.errors import InvalidInput, StoreUnavailable
from rag_tuned_memory.trajectory import StepKind


def df(host: str) -> str:
    """How full the disk of a host is."""
    if host == "db-9":
        raise ConnectionError("db-9 does not answer")
    return f"the disk of {host} is full"


BEGAN: list[str] = []
"""Tools that wait."""


async def wait_long() -> str:
    """Wait."""
    BEGAN.append("wait_long")
    await asyncio.sleep(60)
    return "waited"


async def tool_waits() -> None:
    """Return when a tool has begun to wait."""
    for _ in range(1000):
        if BEGAN:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no tool began")


async def ask_person(ctx: Context) -> str:
    """Ask a person."""
    event = await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="may I?"))
    return f"the person said {event.response}"


ask_person.__annotations__["ctx"] = Context  # as text it is not seen to be the context


def agent(*replies: Reply, **fields: Any) -> FunctionAgent:
    return FunctionAgent(tools=[df, wait_long, ask_person], llm=ScriptedLLM(replies), **fields)


@pytest.fixture(autouse=True)
def nothing_began() -> None:
    BEGAN.clear()


@pytest.fixture
async def recorder(memory: Memory) -> AsyncIterator[TrajectoryRecorder]:
    async with TrajectoryRecorder(memory, on_error="raise") as one:
        yield one


@pytest.fixture(params=["spans", "stream"])
def way(request: pytest.FixtureRequest) -> str:
    """How a run is recorded."""
    return str(request.param)


async def run(recorder: TrajectoryRecorder, way: str, made: Any, **arguments: Any) -> Any:
    """Run an agent, recorded one way or the other."""
    if way == "stream":
        return await recorder.record_run(made.run(**arguments), session_id="s1")
    with recorder.recording(session_id="s1"):
        return await made.run(**arguments)


async def episodes(recorder: TrajectoryRecorder, memory: Memory) -> list[Trajectory]:
    await recorder.aflush()
    return [one async for one in memory.aexport()]


def told(episode: Trajectory) -> list[tuple[str, str | None, str]]:
    return [(step.kind.value, step.tool or step.actor, step.text) for step in episode.steps]


async def test_a_run_is_recorded_whole(recorder: TrajectoryRecorder, memory: Memory, way: str) -> None:
    made = agent([call("df", "c1", host="db-1"), call("df", "c2", host="db-2")], "Both are full.")
    assert str(await run(recorder, way, made, user_msg="which disks are full?")) == "Both are full."
    (episode,) = await episodes(recorder, memory)
    first, *tools, last = told(episode)
    assert (first, last) == (("message", "user", "which disks are full?"), ("message", "assistant", "Both are full."))
    assert [text for kind, _, text in tools if kind == "tool_result"] == [
        "the disk of db-1 is full",
        "the disk of db-2 is full",
    ]
    assert [step.call_id for step in episode.steps if step.kind is StepKind.TOOL_CALL] == ["c1", "c2"]
    assert episode.goal == "which disks are full?"
    assert episode.outcome.success is None
    assert episode.source_id is not None
    assert episode.source_id.startswith("s1/")
    assert episode.metadata == {"session_id": "s1"}


async def test_a_failing_tool(recorder: TrajectoryRecorder, memory: Memory, way: str) -> None:
    await run(recorder, way, agent([call("df", host="db-9")], "It does not answer."), user_msg="is db-9 full?")
    (episode,) = await episodes(recorder, memory)
    result = episode.steps[2]
    assert (result.kind, result.tool) == (StepKind.TOOL_RESULT, "df")
    assert "db-9 does not answer" in str(result.error)


async def test_a_tool_that_is_not_there(recorder: TrajectoryRecorder, memory: Memory, way: str) -> None:
    await run(recorder, way, agent([call("fly")], "I cannot."), user_msg="fly")
    (episode,) = await episodes(recorder, memory)
    assert "fly not found" in str(episode.steps[2].error)


async def test_a_model_that_fails_after_a_tool(recorder: TrajectoryRecorder, memory: Memory, way: str) -> None:
    made = agent([call("df", host="db-1")], RuntimeError("no model"))
    with pytest.raises(RuntimeError, match="no model"):
        await run(recorder, way, made, user_msg="is db-1 full?")
    (episode,) = await episodes(recorder, memory)
    assert [kind for kind, _, _ in told(episode)] == ["message", "tool_call", "tool_result", "observation"]
    assert episode.outcome.success is False
    assert episode.outcome.feedback == "RuntimeError: no model"


async def test_a_cancelled_run(recorder: TrajectoryRecorder, memory: Memory, way: str) -> None:
    made = agent([call("wait_long")])
    with recorder.recording(session_id="s1"):
        handler = made.run(user_msg="wait")
    if way == "stream":
        async with TrajectoryRecorder(memory) as other:
            waiting = asyncio.ensure_future(waits(other.record_run(handler, session_id="s2")))
            await tool_waits()
            await handler.cancel_run()
            assert isinstance(await waiting, WorkflowCancelledByUser)
    else:
        await tool_waits()
        await handler.cancel_run()
    for episode in await episodes(recorder, memory):
        assert told(episode)[:2] == [("message", "user", "wait"), ("tool_call", "wait_long", "")]
        assert episode.steps[-1].text == "The run was cancelled."
        assert (episode.outcome.success, episode.outcome.feedback) == (None, "cancelled")


async def waits(awaited: Any) -> BaseException | None:
    """What awaiting raises."""
    try:
        await awaited
    except BaseException as error:
        return error
    return None


async def test_a_run_that_is_aborted(recorder: TrajectoryRecorder, memory: Memory) -> None:
    recorded = recorder.record_run(agent([call("wait_long")]).run(user_msg="wait"), session_id="s1")
    waiting = asyncio.ensure_future(waits(recorded))
    await tool_waits()
    with warnings.catch_warnings(action="ignore"):  # newer versions warn of it
        recorded.handler.cancel()
    assert isinstance(await waiting, asyncio.CancelledError)
    (episode,) = await episodes(recorder, memory)
    assert episode.outcome.feedback == "cancelled"


async def test_a_run_that_takes_too_long(recorder: TrajectoryRecorder, memory: Memory, way: str) -> None:
    from llama_index.core.workflow import WorkflowTimeoutError

    with pytest.raises(WorkflowTimeoutError):
        await run(recorder, way, agent([call("wait_long")], timeout=1.0), user_msg="wait")
    (episode,) = await episodes(recorder, memory)
    assert episode.outcome.success is False
    assert "timed out" in str(episode.outcome.feedback).lower()


async def test_a_react_agents_reasoning_is_thought_and_its_answer_said(
    recorder: TrajectoryRecorder, memory: Memory, way: str
) -> None:
    llm = ScriptedLLM(
        [
            "no form at all: Action: {",
            'Thought: I look.\nAction: df\nAction Input: {"host": "db-1"}',
            "Thought: I can answer.\nAnswer: It is full.",
        ]
    )
    await run(recorder, way, ReActAgent(tools=[df], llm=llm), user_msg="is db-1 full?")
    (episode,) = await episodes(recorder, memory)
    kinds = [step.kind.value for step in episode.steps]
    assert kinds == ["message", "thought", "thought", "tool_call", "tool_result", "message"]
    assert episode.steps[-1].text == "It is full."


async def test_agents_of_a_workflow_speak_under_their_names(
    recorder: TrajectoryRecorder, memory: Memory, way: str
) -> None:
    looker = FunctionAgent(
        name="looker",
        description="Looks.",
        tools=[df],
        llm=ScriptedLLM([[call("df", host="db-1")], [call("handoff", "c2", to_agent="fixer", reason="full")]]),
        can_handoff_to=["fixer"],
    )
    fixer = FunctionAgent(name="fixer", description="Fixes.", tools=[df], llm=ScriptedLLM(["I removed old logs."]))
    workflow = AgentWorkflow(agents=[looker, fixer], root_agent="looker")
    await run(recorder, way, workflow, user_msg="db-1 is slow")
    (episode,) = await episodes(recorder, memory)
    assert [(step.tool, step.actor) for step in episode.steps if step.kind is StepKind.TOOL_CALL] == [
        ("df", "looker"),
        ("handoff", "looker"),
    ]
    assert (episode.steps[-1].actor, episode.steps[-1].text) == ("fixer", "I removed old logs.")


async def test_a_history_that_ends_with_the_question(recorder: TrajectoryRecorder, memory: Memory, way: str) -> None:
    from llama_index.core.base.llms.types import ChatMessage, MessageRole

    history = [ChatMessage(role=MessageRole.USER, content="is db-1 full?")]
    await run(recorder, way, agent("It is."), chat_history=history)
    (episode,) = await episodes(recorder, memory)
    assert told(episode) == [("message", "user", "is db-1 full?"), ("message", "assistant", "It is.")]


async def test_what_was_recalled_is_not_recorded(recorder: TrajectoryRecorder, memory: Memory, way: str) -> None:
    memory.record({"source": "before", "steps": [{"kind": "message", "text": "removing old logs helped db-1"}]})
    session = RagTunedMemory(memory, record=False, on_error="raise")
    made = agent("Remove old logs.")
    await run(recorder, way, made, user_msg="what helped db-1?", memory=session)
    assert "removing old logs helped" in str(made.llm.seen[0][-1].content)
    _, episode = await episodes(recorder, memory)
    assert told(episode) == [("message", "user", "what helped db-1?"), ("message", "assistant", "Remove old logs.")]


# who is recorded


async def test_runs_outside_are_nobodys(recorder: TrajectoryRecorder, memory: Memory) -> None:
    await agent("hi").run(user_msg="hello")
    with recorder.recording(session_id="s1"):
        pass
    assert await episodes(recorder, memory) == []


async def test_users_at_once_do_not_mix(memories: Memories) -> None:
    async with TrajectoryRecorder(memories, on_error="raise") as recorder:

        async def work(name: str) -> None:
            for turn in range(3):
                llm = ScriptedLLM([[call("df", host=f"{name}-{turn}")], f"{name} is done"], wait=0.002)
                with recorder.recording(name, session_id="s1"):
                    await FunctionAgent(tools=[df], llm=llm).run(user_msg=f"is {name} full?")

        await asyncio.gather(*(work(name) for name in ("alice", "bob")))
        await recorder.aflush()
    for name, other in (("alice", "bob"), ("bob", "alice")):
        found = [one async for one in memories.of(name).aexport()]
        assert len(found) == 3
        assert all(len(one.steps) == 4 for one in found)
        assert other not in str([one.model_dump_json(exclude={"namespace"}) for one in found])


async def test_somebody_must_be_named(memories: Memories) -> None:
    async with TrajectoryRecorder(memories) as recorder:
        with pytest.raises(InvalidInput, match="Give a namespace"), recorder.recording():
            pass
        with pytest.raises(InvalidInput):
            recorder.record_run(agent("hi").run(user_msg="hello"))


async def test_two_recorders_record_their_own(memory: Memory, memories: Memories) -> None:
    async with TrajectoryRecorder(memory, on_error="raise") as one, TrajectoryRecorder(memories) as two:
        with one.recording(session_id="s1"):
            await agent("one").run(user_msg="first")
        with two.recording("bob"):
            await agent("two").run(user_msg="second")
    assert [episode.goal async for episode in memory.aexport()] == ["first"]
    assert [episode.goal async for episode in memories.of("bob").aexport()] == ["second"]


async def test_a_closed_recorder_listens_no_more(memory: Memory) -> None:
    before = (len(get_dispatcher().span_handlers), len(get_dispatcher().event_handlers))
    recorder = TrajectoryRecorder(memory)
    tags = recorder.tags(session_id="s1")
    recorder.close()
    recorder.close()
    assert (len(get_dispatcher().span_handlers), len(get_dispatcher().event_handlers)) == before
    assert tags["rag_tuned_memory.namespace"] == "alice"
    with pytest.raises(InvalidInput, match="closed"), recorder.recording():
        pass


# runs that wait for a person


@pytest.mark.skipif(not WAITS, reason="this version of llama-index-core takes waiting for an error")
async def test_a_person_answers_a_run_that_goes_on(recorder: TrajectoryRecorder, memory: Memory, way: str) -> None:
    made = agent([call("ask_person")], "Done.")
    if way == "stream":
        recorded = recorder.record_run(made.run(user_msg="do it"), session_id="s1")
        async for event in recorded:
            if isinstance(event, InputRequiredEvent):
                recorded.handler.ctx.send_event(HumanResponseEvent(response="yes"))
        assert str(await recorded) == "Done."
    else:
        with recorder.recording(session_id="s1"):
            handler = made.run(user_msg="do it")
        async for event in handler.stream_events():
            if isinstance(event, InputRequiredEvent):
                handler.ctx.send_event(HumanResponseEvent(response="yes"))
        await handler
    (episode,) = await episodes(recorder, memory)
    assert told(episode) == [
        ("message", "user", "do it"),
        ("tool_call", "ask_person", ""),
        ("tool_result", "ask_person", "the person said yes"),
        ("message", "assistant", "Done."),
    ]


@pytest.mark.skipif(not WAITS, reason="this version of llama-index-core takes waiting for an error")
async def test_a_run_that_waits_is_paused_and_goes_on_under_its_name(
    recorder: TrajectoryRecorder, memory: Memory
) -> None:
    made = agent([call("ask_person")], "Done.")
    with recorder.recording(session_id="s1", run="order-7"):
        handler = made.run(user_msg="do it", memory=RagTunedMemory(memory, record=False))
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            break
    await asyncio.sleep(0.05)
    state = handler.ctx.to_dict()
    await handler.cancel_run()
    (paused,) = await episodes(recorder, memory)
    assert [kind for kind, _, _ in told(paused)] == ["message", "tool_call"]
    assert paused.ended_at is None

    with recorder.recording(session_id="s1", run="order-7"):
        handler = made.run(ctx=Context.from_dict(made, state))
    await asyncio.sleep(0.05)
    handler.ctx.send_event(HumanResponseEvent(response="yes"))
    assert str(await handler) == "Done."
    (episode,) = await episodes(recorder, memory)
    assert [kind for kind, _, _ in told(episode)] == ["message", "tool_call", "tool_result", "message"]
    assert episode.goal == "do it"


# the stream of a run


async def test_the_events_of_a_recorded_run_can_be_read(recorder: TrajectoryRecorder, memory: Memory) -> None:
    recorded = recorder.record_run(agent([call("df", host="db-1")], "It is full.").run(user_msg="is it full?"))
    names = [type(event).__name__ async for event in recorded]
    assert names[-1] == "StopEvent"
    assert "ToolCallResult" in names
    assert str(await recorded) == "It is full."
    assert str(await recorded) == "It is full."
    assert len(await episodes(recorder, memory)) == 1


async def test_reading_may_be_left_early(recorder: TrajectoryRecorder, memory: Memory) -> None:
    recorded = recorder.record_run(agent([call("df", host="db-1")], "It is full.").run(user_msg="is it full?"))
    async for event in recorded:
        assert not isinstance(event, StopEvent)
        break
    await recorded
    (episode,) = await episodes(recorder, memory)
    assert len(episode.steps) == 4


async def test_the_question_can_be_given(recorder: TrajectoryRecorder, memory: Memory) -> None:
    made = agent("It is full.", initial_state={"shift": "night"})
    await recorder.record_run(made.run(user_msg="is it full?"), user_msg="is it full?")
    (episode,) = await episodes(recorder, memory)
    assert episode.steps[0].text == "is it full?"


# where the memory fails


def break_store(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(*args: Any, **kwargs: Any) -> None:
        raise StoreUnavailable("the store is down")

    monkeypatch.setattr(memory._core._parts.store(), "put", failing)


async def test_the_run_goes_on_and_recover_stores_it_later(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        break_store(memory, patched)
        recorder = TrajectoryRecorder(memory)
        assert str(await run(recorder, way, agent("It is full."), user_msg="is it full?")) == "It is full."
        await recorder.aflush()
    assert "the store is down" in caplog.text
    recorder.close()
    recorder._link.recorder.close()
    assert [episode.goal async for episode in memory.aexport()] == ["is it full?"]


async def test_flush_raises_where_that_is_wanted(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = TrajectoryRecorder(memory, on_error="raise")
    with monkeypatch.context() as patched:
        break_store(memory, patched)
        with recorder.recording(session_id="s1"):
            await agent("It is full.").run(user_msg="is it full?")
        with pytest.raises(StoreUnavailable):
            await recorder.aflush()
    recorder.close()


async def test_a_run_that_never_began_is_no_episode(recorder: TrajectoryRecorder, memory: Memory) -> None:
    with recorder.recording(session_id="s1"):
        handler = agent("hi").run(user_msg="hello")
    await handler.cancel_run()
    assert all(told(episode)[0] == ("message", "user", "hello") for episode in await episodes(recorder, memory))


async def test_closing_pauses_what_is_open(memory: Memory) -> None:
    recorder = TrajectoryRecorder(memory, on_error="raise")
    with recorder.recording(session_id="s1"):
        handler = agent([call("wait_long")]).run(user_msg="wait")
    await tool_waits()
    await asyncio.to_thread(recorder.close)
    (episode,) = [one async for one in memory.aexport()]
    assert [kind for kind, _, _ in told(episode)] == ["message", "tool_call"]
    await handler.cancel_run()
