"""The recorder by callbacks: every kind of run, how it ends, what it is one episode with."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import operator
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware, SummarizationMiddleware
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_classic.agents import create_react_agent as create_text_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import ToolException, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import create_react_agent
from langgraph.types import Command, interrupt
from scripted_agent import Flavour, ScriptedChat, calls, episodes, line, run, script, told

from langchain_rag_tuned_memory import RagTunedMemoryMiddleware, TrajectoryRecorder
from rag_tuned_memory import Memories, Memory, Outcome, Settings, Trajectory
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace, StoreError
from rag_tuned_memory.recall.prompt import CLOSING, OPENING

FLAVOURS: Any = pytest.mark.parametrize("flavour", ["sync", "async"])


@pytest.fixture
def recorder(memory: Memory) -> Iterator[TrajectoryRecorder]:
    with TrajectoryRecorder(memory, on_error="raise") as opened:
        yield opened


def config(recorder: BaseCallbackHandler, thread: str | None = None, **metadata: Any) -> dict[str, Any]:
    return {
        "callbacks": [recorder],
        "configurable": {} if thread is None else {"thread_id": thread},
        "metadata": metadata,
    }


def only(memory: Memory) -> Trajectory:
    (one,) = episodes(memory)
    return one


@tool
def df(host: str) -> str:
    """How full a disk is."""
    return f"the disk of {host} is full"


@tool
def broken() -> str:
    """Fails."""
    raise ValueError("no such host")


@tool
def refusing() -> str:
    """Says why it cannot."""
    raise ToolException("not today")


refusing.handle_tool_error = True


@tool
def ask(question: str) -> str:
    """Asks somebody."""
    return f"they say {interrupt(question)}"


ASKED = "message user: is db-1 full?"
CALLED = 'tool_call c1: df({"host": "db-1"})'
RETURNED = "tool_result c1: the disk of db-1 is full"
ANSWERED = "message assistant: it is full"
WHOLE = [ASKED, CALLED, RETURNED, ANSWERED]


@FLAVOURS
@pytest.mark.parametrize("make", [create_agent, create_react_agent])
async def test_an_agent(memory: Memory, recorder: TrajectoryRecorder, make: Any, flavour: Flavour) -> None:
    agent = make(script(calls(("df", {"host": "db-1"}, "c1")), "it is full"), [df])
    await run(agent, flavour, "is db-1 full?", config=config(recorder))
    one = only(memory)
    assert told(one) == WHOLE
    assert (one.goal, one.source, one.outcome) == ("is db-1 full?", "langchain", Outcome())
    assert one.started_at is not None
    assert one.ended_at is not None
    assert one.ended_at > one.started_at


def test_a_stream(memory: Memory, recorder: TrajectoryRecorder) -> None:
    agent = create_agent(script(calls(("df", {"host": "db-1"}, "c1"), text="let me look"), "it is full"), [df])
    chunks = agent.stream({"messages": [("user", "is db-1 full?")]}, config(recorder), stream_mode="messages")
    assert len(list(chunks)) > 4
    lines = told(only(memory))
    assert lines[0] == ASKED
    assert lines[1].startswith("message assistant: let me look")
    assert lines[2:4] == [CALLED, RETURNED]
    assert lines[4].startswith(ANSWERED)


def _executor(*answers: Any) -> AgentExecutor:
    prompt = ChatPromptTemplate.from_messages(
        [("system", "help"), ("user", "{input}"), ("placeholder", "{agent_scratchpad}")]
    )
    tools = [df, refusing]
    return AgentExecutor(agent=create_tool_calling_agent(script(*answers), tools, prompt), tools=tools)


@FLAVOURS
async def test_an_agent_executor(memory: Memory, recorder: TrajectoryRecorder, flavour: Flavour) -> None:
    two = calls(("df", {"host": "db-1"}, "c1"), ("df", {"host": "db-2"}, "c2"))
    executor = _executor(two, calls(("refusing", {}, "c3")), "it is full")
    await run(executor, flavour, {"input": "is db-1 full?"}, config=config(recorder))  # type: ignore[arg-type]
    one = only(memory)
    assert sorted(told(one)[:5]) == sorted(
        [ASKED, CALLED, 'tool_call c2: df({"host": "db-2"})', RETURNED, "tool_result c2: the disk of db-2 is full"]
    )
    assert told(one)[5:] == [
        "tool_call c3: refusing({})",
        "tool_result c3: not today",
        "message assistant: it is full ",  # it streams
    ]
    assert one.goal == "is db-1 full?"


def test_an_agent_that_calls_tools_in_text(memory: Memory, recorder: TrajectoryRecorder) -> None:
    prompt = PromptTemplate.from_template("{tools} {tool_names} Question: {input} {agent_scratchpad}")
    model = FakeListLLM(
        responses=["Thought: look\nAction: df\nAction Input: db-1", "Thought: ok\nFinal Answer: it is full"]
    )
    executor = AgentExecutor(agent=create_text_agent(model, [df], prompt), tools=[df])
    executor.invoke({"input": "is db-1 full?"}, config(recorder))
    one = only(memory)
    assert [step.kind for step in one.steps] == ["message", "message", "tool_call", "tool_result", "message"]
    assert one.steps[2].arguments == {"input": "db-1"}
    assert one.steps[2].call_id == one.steps[3].call_id
    assert one.steps[3].text == "the disk of db-1 is full"
    assert one.steps[4].text.endswith("Final Answer: it is full")


@FLAVOURS
async def test_a_plain_chain(memory: Memory, recorder: TrajectoryRecorder, flavour: Flavour) -> None:
    chain: Any = ChatPromptTemplate.from_template("Answer: {input}") | script("it is full", "yes") | StrOutputParser()
    await run(chain, flavour, {"input": "is db-1 full?"}, config=config(recorder))  # type: ignore[arg-type]
    assert told(only(memory)) == [ASKED, ANSWERED]
    assert [part async for part in chain.astream({"input": "and db-2?"}, config(recorder))]
    assert len(episodes(memory)) == 2


def test_what_calls_no_model(memory: Memory, recorder: TrajectoryRecorder) -> None:
    chain = RunnableLambda(lambda question: f"no answer to {question}")
    chain.invoke("is db-1 full?", config(recorder))  # type: ignore[arg-type]
    assert told(only(memory)) == [ASKED, "message assistant: no answer to is db-1 full?"]


def test_a_bare_model_and_a_bare_tool(memory: Memory, recorder: TrajectoryRecorder) -> None:
    script("it is full").invoke("is db-1 full?", config(recorder))  # type: ignore[arg-type]
    df.invoke({"host": "db-1"}, config(recorder))  # type: ignore[arg-type]
    model, bare = episodes(memory)
    assert told(model) == [ASKED, ANSWERED]
    assert [step.kind for step in bare.steps] == ["message", "tool_call", "tool_result"]
    assert bare.steps[1].arguments == {"host": "db-1"}


def test_a_batch_is_an_episode_each(memory: Memory, recorder: TrajectoryRecorder) -> None:
    chain = RunnableLambda(lambda question: f"re {question}")
    chain.batch(["one", "two", "three"], config(recorder))  # type: ignore[arg-type]
    assert {one.goal: told(one)[1] for one in episodes(memory)} == {
        name: f"message assistant: re {name}" for name in ("one", "two", "three")
    }


def test_what_goes_on_inside_a_tool_is_the_same_episode(memory: Memory, recorder: TrajectoryRecorder) -> None:
    inner = create_agent(script(calls(("df", {"host": "db-1"}, "i1")), "full, it is"), [df], name="inner")

    @tool
    def research(question: str) -> str:
        """Asks another agent."""
        return str(inner.invoke({"messages": [("user", question)]})["messages"][-1].text)

    outer = create_agent(script(calls(("research", {"question": "disk?"}, "c1")), "it is full"), [research])
    outer.invoke({"messages": [("user", "is db-1 full?")]}, config(recorder))
    lines = told(only(memory))
    assert lines[0] == ASKED
    assert set(lines[1:-1]) == {
        'tool_call c1: research({"question": "disk?"})',
        "tool_result c1: full, it is",
        'tool_call i1: df({"host": "db-1"})',
        "tool_result i1: the disk of db-1 is full",
        "message assistant: full, it is",
    }
    assert lines[-1] == ANSWERED


def test_parallel_tools_stand_in_the_order_of_their_calls(memory: Memory, recorder: TrajectoryRecorder) -> None:
    first = threading.Event()

    @tool
    def slow(n: int) -> str:
        """Waits."""
        if n == 0:
            first.wait(5)
        else:
            first.set()
        return f"result {n}"

    many = calls(*(("slow", {"n": n}, f"c{n}") for n in range(4)))
    create_agent(script(many, "done"), [slow]).invoke({"messages": [("user", "go")]}, config(recorder))
    assert [one for one in told(only(memory)) if one.startswith("tool_result")] == [
        f"tool_result c{n}: result {n}" for n in range(4)
    ]


def test_call_ids_that_come_again_are_told_apart(memory: Memory, recorder: TrajectoryRecorder) -> None:
    answers = [calls(("df", {"host": f"db-{n}"}, "call_0")) for n in (1, 2)]
    create_agent(script(*answers, "both"), [df]).invoke({"messages": [("user", "go")]}, config(recorder))
    assert told(only(memory))[1:5] == [
        'tool_call call_0: df({"host": "db-1"})',
        "tool_result call_0: the disk of db-1 is full",
        'tool_call call_0#2: df({"host": "db-2"})',
        "tool_result call_0#2: the disk of db-2 is full",
    ]


@FLAVOURS
async def test_a_tool_that_fails_ends_the_run_as_a_failure(
    memory: Memory, recorder: TrajectoryRecorder, flavour: Flavour
) -> None:
    agent = create_agent(script(calls(("broken", {}, "c1"))), [broken])
    with pytest.raises(ValueError, match="no such host"):
        await run(agent, flavour, "is db-1 full?", config=config(recorder))
    one = only(memory)
    assert told(one) == [ASKED, "tool_call c1: broken({})", "tool_result c1:  !ValueError: no such host"]
    assert one.outcome.success is False


@FLAVOURS
async def test_a_model_that_fails_ends_the_run_as_a_failure(
    memory: Memory, recorder: TrajectoryRecorder, flavour: Flavour
) -> None:
    agent = create_agent(script(RuntimeError("overloaded")), [df])
    with pytest.raises(RuntimeError, match="overloaded"):
        await run(agent, flavour, "is db-1 full?", config=config(recorder))
    one = only(memory)
    assert [step.error for step in one.steps] == [None, "RuntimeError: overloaded"]
    assert one.outcome.success is False


def test_a_model_that_fails_and_is_asked_again_is_no_failure(memory: Memory, recorder: TrajectoryRecorder) -> None:
    model = script(RuntimeError("overloaded"), "it is full")
    chain: Any = model.with_retry(wait_exponential_jitter=False)
    chain.invoke("is db-1 full?", config(recorder))
    one = only(memory)
    assert [step.error for step in one.steps] == [None, "RuntimeError: overloaded", None]
    assert one.outcome == Outcome()


def test_a_graph_that_fails_by_itself(memory: Memory, recorder: TrajectoryRecorder) -> None:
    def fail(question: str) -> str:
        raise KeyError(question)

    with pytest.raises(KeyError):
        RunnableLambda(fail).invoke("is db-1 full?", config(recorder))  # type: ignore[arg-type]
    one = only(memory)
    assert line(one.steps[0]) == ASKED
    assert one.steps[1].error == "KeyError: 'is db-1 full?'"
    assert one.outcome.success is False


async def test_a_run_that_is_cancelled_is_recorded_and_no_failure(memory: Memory, recorder: TrajectoryRecorder) -> None:
    started = asyncio.Event()

    @tool
    async def waiting() -> str:
        """Waits."""
        started.set()
        await asyncio.sleep(60)
        return "never"

    agent = create_agent(script(calls(("waiting", {}, "c1"))), [waiting])
    task = asyncio.create_task(run(agent, "async", "is db-1 full?", config=config(recorder)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    one = only(memory)
    assert told(one)[:2] == [ASKED, "tool_call c1: waiting({})"]
    assert one.steps[-1].error == "cancelled"
    assert one.outcome == Outcome()


def test_a_stream_that_is_left_is_recorded(memory: Memory, recorder: TrajectoryRecorder) -> None:
    agent = create_agent(script(calls(("df", {"host": "db-1"}, "c1")), "it is full"), [df])
    for _ in agent.stream({"messages": [("user", "is db-1 full?")]}, config(recorder)):
        break
    gc.collect()
    one = only(memory)
    assert told(one)[:2] == [ASKED, CALLED]
    assert one.outcome == Outcome()


@FLAVOURS
async def test_an_interrupt_is_a_pause_and_the_resumed_run_the_same_episode(
    memory: Memory, settings: Settings, flavour: Flavour
) -> None:
    saver = InMemorySaver()

    def agent() -> Any:
        both = calls(("ask", {"question": "sure?"}, "c1"), ("df", {"host": "db-1"}, "c2"))
        return create_agent(script("it is full") if resumed else script(both), [ask, df], checkpointer=saver)

    resumed = False
    with TrajectoryRecorder(memory, on_error="raise") as recorder:
        await run(agent(), flavour, "is db-1 full?", config=config(recorder, "t"))
        paused = only(memory)
        assert told(paused) == [
            ASKED,
            'tool_call c1: ask({"question": "sure?"})',
            'tool_call c2: df({"host": "db-1"})',
            "tool_result c2: the disk of db-1 is full",
        ]
        assert (paused.ended_at, paused.outcome) == (None, Outcome())
    resumed = True
    with TrajectoryRecorder(memory, on_error="raise") as another:  # as another process would have
        await run(agent(), flavour, Command(resume="yes"), config=config(another, "t"))
    one = only(memory)
    assert one.id == paused.id
    assert sorted(told(one)) == sorted([*told(paused), "tool_result c1: they say yes", ANSWERED])
    assert one.ended_at is not None


def test_a_static_interrupt_and_a_turn_after_it(memory: Memory, recorder: TrajectoryRecorder) -> None:
    model = script(calls(("df", {"host": "db-1"}, "c1")), "it is full", "you are welcome")
    agent = create_agent(model, [df], checkpointer=InMemorySaver(), interrupt_before=["tools"])
    agent.invoke({"messages": [("user", "is db-1 full?")]}, config(recorder, "t"))
    assert (told(only(memory)), only(memory).ended_at) == (WHOLE[:2], None)
    agent.invoke(None, config(recorder, "t"))
    assert told(only(memory)) == WHOLE
    agent.invoke({"messages": [("user", "thanks")]}, config(recorder, "t"))
    first, second = episodes(memory)
    assert told(first) == WHOLE
    assert told(second) == ["message user: thanks", "message assistant: you are welcome"]


def test_a_call_that_somebody_changed_is_recorded_as_it_was_made(memory: Memory, recorder: TrajectoryRecorder) -> None:
    approve: Any = HumanInTheLoopMiddleware(interrupt_on={"df": True})
    model = script(calls(("df", {"host": "db-9"}, "c1")), "it is full")
    agent = create_agent(model, [df], middleware=[approve], checkpointer=InMemorySaver())
    agent.invoke({"messages": [("user", "is db-1 full?")]}, config(recorder, "t"))
    edited = {"type": "edit", "edited_action": {"name": "df", "args": {"host": "db-1"}}}
    agent.invoke(Command(resume={"decisions": [edited]}), config(recorder, "t"))
    asked, called, returned, answered = told(only(memory))
    assert [asked, called, answered] == [ASKED, CALLED, ANSWERED]
    assert returned.endswith("the disk of db-1 is full")  # after a note for the model


class Steps(TypedDict):
    done: Annotated[list[str], operator.add]


def test_a_graph_without_messages_goes_on_in_its_episode(memory: Memory, recorder: TrajectoryRecorder) -> None:
    def work(state: Steps) -> Steps:
        found = df.invoke({"host": "db-1"})
        return {"done": [found, interrupt("go on?")]}

    graph = StateGraph(Steps)
    graph.add_node("work", work)
    graph.add_edge(START, "work")
    compiled = graph.compile(checkpointer=InMemorySaver())
    compiled.invoke({"done": []}, config(recorder, "t"))
    compiled.invoke(Command(resume="yes"), config(recorder, "t"))
    one = only(memory)
    assert {step.kind for step in one.steps} == {"tool_call", "tool_result"}
    assert one.ended_at is not None


class Talk(TypedDict):
    messages: Annotated[list[Any], add_messages]


def test_a_graph_whose_nodes_write_messages_themselves(memory: Memory, recorder: TrajectoryRecorder) -> None:
    def answer(state: Talk) -> Talk:
        call = calls(("df", {"host": "db-1"}, "c1"))
        return {
            "messages": [
                call,
                ToolMessage("the disk of db-1 is full", tool_call_id="c1", name="df"),
                AIMessage("it is full"),
            ]
        }

    graph = StateGraph(Talk)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    graph.compile().invoke({"messages": [HumanMessage("is db-1 full?")]}, config(recorder))
    assert told(only(memory)) == WHOLE


def test_a_replay_stays_one_episode(memory: Memory, recorder: TrajectoryRecorder) -> None:
    model = script(calls(("df", {"host": "db-1"}, "c1")), "it is full", "it is full again")
    agent = create_agent(model, [df], checkpointer=InMemorySaver())
    agent.invoke({"messages": [("user", "is db-1 full?")]}, config(recorder, "t"))
    before_the_answer = list(agent.get_state_history({"configurable": {"thread_id": "t"}}))[1]
    agent.invoke(None, {**before_the_answer.config, "callbacks": [recorder]})
    assert told(only(memory)) == [*WHOLE, "message assistant: it is full again"]


def test_summaries_and_other_calls_of_middleware_are_left_out(memory: Memory, recorder: TrajectoryRecorder) -> None:
    summary = SummarizationMiddleware(script("a summary", "a summary"), trigger=("messages", 4), keep=("messages", 1))
    model = script("one", "two", "three")
    agent = create_agent(model, [df], middleware=[summary], checkpointer=InMemorySaver())
    for question in ("first?", "second?", "third?"):
        agent.invoke({"messages": [("user", question)]}, config(recorder, "t"))
    assert any("a summary" in str(message.content) for message in model.prompts[-1])
    assert [told(one) for one in episodes(memory)] == [
        [f"message user: {question}", f"message assistant: {answer}"]
        for question, answer in [("first?", "one"), ("second?", "two"), ("third?", "three")]
    ]


@FLAVOURS
@pytest.mark.parametrize("thread", [None, "t"])
async def test_beside_the_middleware_it_is_one_record(
    memory: Memory, recorder: TrajectoryRecorder, flavour: Flavour, thread: str | None
) -> None:
    model = script(calls(("df", {"host": "db-1"}, "c1")), "it is full", "you are welcome")
    with closing(RagTunedMemoryMiddleware(memory)) as middleware:
        saver = InMemorySaver() if thread else None
        agent = create_agent(model, [df], middleware=[middleware], checkpointer=saver)
        await run(agent, flavour, "is db-1 full?", config=config(recorder, thread))
        await run(agent, flavour, "thanks", config=config(recorder, thread))
    assert [told(one) for one in episodes(memory)] == [
        WHOLE,
        ["message user: thanks", "message assistant: you are welcome"],
    ]


def test_recalled_text_is_never_recorded(memory: Memory, recorder: TrajectoryRecorder) -> None:
    fenced = f"{OPENING}\nthe vault code is 4711\n{CLOSING}"

    @tool
    def recall() -> str:
        """Recalls."""
        return f"found: {fenced}"

    agent = create_agent(script(calls(("recall", {}, "c1")), f"{fenced} it is full"), [recall], system_prompt=fenced)
    agent.invoke({"messages": [("user", f"{fenced} is db-1 full?")]}, config(recorder))
    assert "4711" not in only(memory).model_dump_json()
    assert told(only(memory)) == [ASKED, "tool_call c1: recall({})", "tool_result c1: found:", ANSWERED]


class Equipped(ScriptedChat):
    """Tells its tools in OpenAI's form, as most providers' models do, and one of the provider's own."""

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self.bind(tools=[*map(convert_to_openai_tool, tools), {"type": "web_search"}, {"odd": 1}], **options)


def test_what_the_agent_was_equipped_with_is_noted(memory: Memory, recorder: TrajectoryRecorder) -> None:
    left: list[Any] = [calls(("df", {"host": "db-1"}, "c1")), AIMessage("it is full")]
    model = Equipped(answer=lambda messages: left.pop(0))
    system = f"You keep hosts alive.\n{OPENING}\nthe vault code is 4711\n{CLOSING}"
    agent = create_agent(model, [df], system_prompt=system)
    agent.invoke({"messages": [("user", "is db-1 full?")]}, config(recorder))
    one = only(memory)
    (told_tool,) = one.metadata["tools"]  # type: ignore[misc, union-attr]
    assert told_tool["name"] == "df"  # type: ignore[index, call-overload]
    assert one.metadata["system"] == "You keep hosts alive."


def test_two_users_at_once_are_told_apart(memories: Memories) -> None:
    def answer(messages: list[Any]) -> AIMessage:
        said = str(messages[-1].content)
        return calls(("df", {"host": said}, f"c-{said}")) if isinstance(messages[-1], HumanMessage) else AIMessage(said)

    agent = create_agent(ScriptedChat(answer=answer), [df])
    users = [f"user-{number}" for number in range(6)]
    with TrajectoryRecorder(memories, on_error="raise") as recorder:
        threads = [
            threading.Thread(
                target=agent.invoke,
                args=({"messages": [("user", f"host-of-{user}")]}, config(recorder, namespace=user)),
            )
            for user in users
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    for user in users:
        one = only(memories.of(user))
        assert len(one.steps) == 4
        assert all(user in line(step) for step in one.steps)


@FLAVOURS
async def test_a_run_that_does_not_say_whose_it_is_is_refused(memories: Memories, flavour: Flavour) -> None:
    model = script("it is full")
    agent = create_agent(model, [df])
    with TrajectoryRecorder(memories) as recorder, pytest.raises(InvalidNamespace, match="does not say whose it is"):
        await run(agent, flavour, "is db-1 full?", config=config(recorder))
    assert model.prompts == []


def test_whose_it_is_can_be_told_by_argument_or_function(memories: Memories, memory: Memory) -> None:
    chain = RunnableLambda(lambda question: "yes")
    with TrajectoryRecorder(memories, namespace="alice") as recorder:
        chain.invoke("one", config(recorder))  # type: ignore[arg-type]
    with TrajectoryRecorder(memories, namespace=lambda metadata: metadata["user"]) as recorder:
        chain.invoke("two", config(recorder, user="bob"))  # type: ignore[arg-type]
    assert [only(memories.of(name)).goal for name in ("alice", "bob")] == ["one", "two"]
    with TrajectoryRecorder(memory) as recorder, pytest.raises(InvalidNamespace, match="bound to namespace"):
        chain.invoke("three", config(recorder, namespace="alice"))  # type: ignore[arg-type]


def test_a_caller_may_judge(memory: Memory) -> None:
    def judge(output: Any) -> Outcome:
        return Outcome(success=output == "yes")

    with TrajectoryRecorder(memory, outcome=judge) as recorder:
        RunnableLambda(lambda question: "yes").invoke("one", config(recorder))  # type: ignore[arg-type]
    assert only(memory).outcome.success is True


def test_a_judge_that_fails_costs_no_episode(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    with TrajectoryRecorder(memory, outcome=lambda output: Outcome(success=output["no"])) as recorder:
        RunnableLambda(lambda question: "yes").invoke("one", config(recorder))  # type: ignore[arg-type]
    assert only(memory).outcome == Outcome()
    assert "could not judge a run" in caplog.text


def test_a_memory_that_fails_does_not_stop_the_agent_and_is_tried_again(
    memory: Memory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = RunnableLambda(lambda question: f"re {question}")
    extend = Memory.extend

    def down(self: Memory, given: Any) -> Any:
        raise StoreError("the store is down")

    with TrajectoryRecorder(memory, outcome=lambda output: Outcome(success=True)) as recorder:
        monkeypatch.setattr(Memory, "extend", down)
        with caplog.at_level(logging.WARNING):
            assert chain.invoke("one", config(recorder)) == "re one"  # type: ignore[arg-type]
        assert "could not store an episode" in caplog.text
        monkeypatch.setattr(Memory, "extend", extend)
        chain.invoke("two", config(recorder))  # type: ignore[arg-type]
        assert {one.goal: one.outcome.success for one in episodes(memory)} == {"one": True, "two": True}
        monkeypatch.setattr(Memory, "extend", down)
        chain.invoke("three", config(recorder))  # type: ignore[arg-type]
        monkeypatch.setattr(Memory, "extend", extend)
    assert len(episodes(memory)) == 3


def test_a_memory_that_fails_is_raised_where_that_is_asked_for(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(self: Memory, given: Any) -> Any:
        raise StoreError("the store is down")

    monkeypatch.setattr(Memory, "extend", down)
    recorder = TrajectoryRecorder(memory, on_error="raise")
    with pytest.raises(StoreError, match="down"):
        RunnableLambda(lambda question: "yes").invoke("one", config(recorder))  # type: ignore[arg-type]

    def fail(question: str) -> str:
        raise KeyError(question)

    with pytest.raises(KeyError):  # the run's own error is not hidden
        RunnableLambda(fail).invoke("one", config(recorder))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="'log' or 'raise'"):
        TrajectoryRecorder(memory, on_error="ignore")  # type: ignore[arg-type]


def test_it_is_never_copied_and_keeps_nothing_of_ended_runs(memory: Memory, recorder: TrajectoryRecorder) -> None:
    assert copy.deepcopy({"callbacks": [recorder]})["callbacks"][0] is recorder
    agent = create_agent(script(calls(("df", {"host": "db-1"}, "c1")), "it is full"), [df])
    agent.invoke({"messages": [("user", "is db-1 full?")]}, config(recorder))
    assert recorder._runs == {}
    assert recorder._owed == {}
    assert list((memory.settings.home / "open").rglob("*.jsonl")) == []


def test_hostile_input(memory: Memory, recorder: TrajectoryRecorder) -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = {"a": deep}

    @tool
    def take(value: Any) -> str:
        """Takes anything."""
        return "\ud800 \x00 " + "long " * 400_000

    agent = create_agent(script(calls(("take", {"value": deep}, "c1")), ""), [take])
    agent.invoke({"messages": [("user", "\ud800 hello")]}, config(recorder, "thread-\ud800"))
    one = only(memory)
    assert one.goal == "\ufffd hello"
    assert "cut" in one.steps[2].text[-100:]


def test_what_a_killed_process_left_is_stored(settings: Settings, tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_rag_tuned_memory import TrajectoryRecorder
from rag_tuned_memory import Memory, Settings
from scripted_agent import calls, script

@tool
def df(host: str) -> str:
    "How full a disk is."
    return "full"

@tool
def die() -> str:
    "Is killed."
    os.kill(os.getpid(), signal.SIGKILL)

memory = Memory("operations", settings=Settings(home=Path({str(settings.home)!r}), embedder="hashing"))
agent = create_agent(script(calls(("df", {{"host": "db-1"}}, "c1")), calls(("die", {{}}, "c2"))), [df, die])
agent.invoke({{"messages": [("user", "is db-1 full?")]}}, {{"callbacks": [TrajectoryRecorder(memory)]}})
"""
    folder = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], env=_environment(folder), capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()[-2000:]
    with Memory("operations", settings=settings) as memory, TrajectoryRecorder(memory) as recorder:
        assert episodes(memory) == []
        recorder.recover()
        assert told(only(memory)) == [ASKED, CALLED, "tool_result c1: full", "tool_call c2: die({})"]


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *(one for one in sys.path if one)])}
