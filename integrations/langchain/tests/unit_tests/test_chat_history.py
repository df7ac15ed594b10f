"""Conversations of old code: what is read is what was written, whoever writes, whenever."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import ConfigurableFieldSpec
from langchain_core.runnables.history import RunnableWithMessageHistory
from scripted_agent import calls, script, told

from langchain_rag_tuned_memory import RagTunedChatMessageHistory
from rag_tuned_memory import Memories, Memory, Settings, StepKind
from rag_tuned_memory.adapters import State
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace, StoreError
from rag_tuned_memory.recall.prompt import CLOSING, OPENING
from served_adapter import register

CONVERSATION: list[BaseMessage] = [
    SystemMessage("be brief"),
    HumanMessage("is db-1 full?", id="h1", name="ann"),
    calls(("df", {"host": "db-1"}, "call_0")),
    ToolMessage("full", tool_call_id="call_0", name="df", artifact={"raw": [1]}),
    calls(("df", {"host": "db-2"}, "call_0"), ("nope", {}, "call_1"), text="and the other"),
    ToolMessage("empty", tool_call_id="call_0"),
    ToolMessage("no such tool", tool_call_id="call_1", status="error"),
    AIMessage(
        [{"type": "text", "text": "db-1 is full"}, {"type": "image_url", "image_url": {"url": "data:x"}}],
        response_metadata={"model": "m"},
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        additional_kwargs={"reasoning_content": "look first"},
    ),
    HumanMessage(""),
    AIMessage("  \n"),
    HumanMessage("is db-1 full?", id="h1", name="ann"),
]


@pytest.fixture
def history(memory: Memory) -> RagTunedChatMessageHistory:
    return RagTunedChatMessageHistory(memory, "s1")


def test_what_is_read_is_what_was_written(history: RagTunedChatMessageHistory) -> None:
    assert history.messages == []
    history.add_messages(CONVERSATION[:3])
    history.add_messages(CONVERSATION[3:6])
    for message in CONVERSATION[6:]:
        history.add_message(message)
    history.add_messages([])
    assert history.messages == CONVERSATION


def test_a_conversation_is_one_episode_with_its_tool_calls(memory: Memory, history: RagTunedChatMessageHistory) -> None:
    history.add_messages(CONVERSATION[:4])
    history.add_messages(CONVERSATION[4:8])
    (one,) = memory.export()
    assert one.goal == "is db-1 full?"
    assert one.started_at is not None
    assert one.ended_at is not None
    results = [step for step in one.steps if step.kind is StepKind.TOOL_RESULT]
    made = [step for step in one.steps if step.kind is StepKind.TOOL_CALL]
    assert [step.call_id for step in results] == [step.call_id for step in made]
    assert len({step.call_id for step in made}) == 3
    assert results[2].error == "no such tool"
    assert "thought assistant: look first" in told(one)
    assert memory.recall("is db-1 full?").results[0].trajectory_id == history.trajectory_id


def test_additions_are_read_at_once_by_others_and_after_a_restart(settings: Settings) -> None:
    with Memory("operations", settings=settings) as memory:
        RagTunedChatMessageHistory(memory, "s1").add_user_message("hello")
        RagTunedChatMessageHistory(memory, "s1").add_ai_message("hi")
        assert len(RagTunedChatMessageHistory(memory, "s1").messages) == 2
    with Memory("operations", settings=settings) as memory:
        again = RagTunedChatMessageHistory(memory, "s1")
        again.add_user_message("still there?")
        assert [message.content for message in again.messages] == ["hello", "hi", "still there?"]


def test_what_another_process_added_is_there_though_it_was_killed(settings: Settings) -> None:
    program = f"""
import os, signal
from pathlib import Path
from langchain_rag_tuned_memory import RagTunedChatMessageHistory
from rag_tuned_memory import Memory, Settings
memory = Memory("operations", settings=Settings(home=Path({str(settings.home)!r}), embedder="hashing"))
RagTunedChatMessageHistory(memory, "s1").add_user_message("hello")
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()[-2000:]
    with Memory("operations", settings=settings) as memory:
        assert [one.content for one in RagTunedChatMessageHistory(memory, "s1").messages] == ["hello"]


def test_sessions_and_users_are_never_mixed(memories: Memories) -> None:
    every = [
        RagTunedChatMessageHistory(memories, session, namespace=user)
        for user in ("alice", "bob")
        for session in ("s1", "s2", "S1", "s1 ")
    ]
    for number, one in enumerate(every):
        one.add_user_message(f"message {number}")
    assert [[m.content for m in one.messages] for one in every] == [[f"message {n}"] for n in range(len(every))]
    every[0].clear()
    assert [len(one.messages) for one in every] == [0, *[1] * (len(every) - 1)]


def test_clear_forgets(memory: Memory, history: RagTunedChatMessageHistory, tmp_path: Path) -> None:
    history.add_user_message("the vault code is 4711")
    learned = register(memory.registry, "operations", tmp_path, [history.trajectory_id])
    history.clear()
    assert history.messages == []
    assert memory.recall("vault code").results == ()
    assert memory.registry.state(learned.name) is State.TAINTED
    history.clear()
    history.add_user_message("hello")
    assert len(history.messages) == 1


def test_recalled_text_is_left_out(memory: Memory, history: RagTunedChatMessageHistory) -> None:
    fenced = f"{OPENING}\nthe vault code is 4711\n{CLOSING}"
    history.add_messages(
        [
            HumanMessage(f"{fenced} hello"),
            AIMessage(fenced),
            AIMessage([{"type": "text", "text": f"{fenced} hi"}]),
            ToolMessage(fenced, tool_call_id="c1"),
        ]
    )
    (one,) = memory.export()
    assert "4711" not in one.model_dump_json()
    assert [message.type for message in history.messages] == ["human", "ai", "ai", "tool"]
    assert history.messages[0].content == " hello"


def test_several_threads_lose_nothing(history: RagTunedChatMessageHistory) -> None:
    threads = [
        threading.Thread(target=history.add_messages, args=([HumanMessage(f"q{n}"), AIMessage(f"a{n}")],))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [str(message.content) for message in history.messages]
    assert sorted(said) == sorted([*(f"q{n}" for n in range(8)), *(f"a{n}" for n in range(8))])
    assert all(said[said.index(f"q{n}") + 1] == f"a{n}" for n in range(8))


async def test_the_awaited_twins_do_the_same(history: RagTunedChatMessageHistory) -> None:
    await history.aadd_messages(CONVERSATION)
    assert await history.aget_messages() == CONVERSATION
    assert history.messages == CONVERSATION
    await history.aclear()
    assert await history.aget_messages() == []


@pytest.mark.parametrize("session", ["", "  ", None, 7, "\ud800"])
def test_a_session_needs_an_id(memory: Memory, session: Any) -> None:
    with pytest.raises(InvalidInput, match="a session id must be non-empty text"):
        RagTunedChatMessageHistory(memory, session)


def test_it_must_be_known_whose_session_it_is(memories: Memories) -> None:
    history = RagTunedChatMessageHistory(memories, "s1")
    with pytest.raises(InvalidNamespace, match="names none"):
        history.add_user_message("hello")
    with pytest.raises(InvalidNamespace, match="names none"):
        _ = history.messages


def test_a_message_that_is_too_large_is_refused_whole(settings: Settings) -> None:
    small = settings.model_copy(update={"max_step_bytes": 2000})
    with Memory("operations", settings=small) as memory:
        history = RagTunedChatMessageHistory(memory, "s1")
        with pytest.raises(InvalidInput, match="RTM_MAX_STEP_BYTES"):
            history.add_messages([HumanMessage("hello"), HumanMessage("x" * 3000)])
        assert history.messages == []


def test_a_store_that_fails_is_no_empty_conversation(tmp_path: Path) -> None:
    (tmp_path / "memory.db").write_bytes(b"no database" * 1000)
    with (
        Memory("operations", settings=Settings(home=tmp_path, embedder="hashing")) as memory,
        pytest.raises(StoreError),
    ):
        _ = RagTunedChatMessageHistory(memory, "s1").messages


def _chain(histories: Any, *answers: str, **options: Any) -> tuple[Any, Any]:
    model = script(*answers)
    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{question}")])
    chain = RunnableWithMessageHistory(
        prompt | model, histories, input_messages_key="question", history_messages_key="history", **options
    )
    return chain, model


@pytest.mark.parametrize("flavour", ["sync", "async"])
async def test_in_a_runnable_with_message_history(memory: Memory, flavour: str) -> None:
    kept: dict[str, InMemoryChatMessageHistory] = {}

    def reference(session_id: str) -> InMemoryChatMessageHistory:
        return kept.setdefault(session_id, InMemoryChatMessageHistory())

    def ours(session_id: str) -> RagTunedChatMessageHistory:
        return RagTunedChatMessageHistory(memory, session_id)

    seen = []
    for histories in (reference, ours):
        chain, model = _chain(histories, *"abcd")
        for session, question in [("s1", "one"), ("s2", "two"), ("s1", "three"), ("s2", "four")]:
            config: Any = {"configurable": {"session_id": session}}
            if flavour == "sync":
                await asyncio.to_thread(chain.invoke, {"question": question}, config)
            else:
                await chain.ainvoke({"question": question}, config)
        seen.append([[(message.type, message.content) for message in prompt] for prompt in model.prompts])
    assert seen[0] == seen[1]
    assert seen[1][3] == [("human", "two"), ("ai", "b"), ("human", "four")]


async def test_in_a_chain_whose_config_says_whose_session_it_is(memories: Memories) -> None:
    def ours(user: str, session: str) -> RagTunedChatMessageHistory:
        return RagTunedChatMessageHistory(memories, session, namespace=user)

    fields = [ConfigurableFieldSpec(id=name, annotation=str) for name in ("user", "session")]
    chain, _ = _chain(ours, *"abcdef", history_factory_config=fields)
    configs = [{"configurable": {"user": user, "session": "s1"}} for user in ("alice", "bob")]
    await asyncio.gather(*(chain.ainvoke({"question": "hello"}, one) for one in configs))
    for user in ("alice", "bob"):
        assert len(RagTunedChatMessageHistory(memories, "s1", namespace=user).messages) == 2
