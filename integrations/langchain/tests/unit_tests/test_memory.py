"""Memory of chains and agents of langchain-classic."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_classic.base_memory import BaseMemory
from langchain_classic.chains import ConversationChain, LLMChain
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.tools import tool
from pydantic import ValidationError
from scripted_agent import Flavour, calls, script

from incidents import episode
from langchain_rag_tuned_memory import RagTunedChatMessageHistory, RagTunedMemory
from rag_tuned_memory import Memories, Memory
from rag_tuned_memory.errors import InvalidNamespace, StoreError
from rag_tuned_memory.recall.prompt import CLOSING, OPENING

FLAVOURS: Any = pytest.mark.parametrize("flavour", ["sync", "async"])


async def load(one: RagTunedMemory, flavour: Flavour, inputs: dict[str, Any]) -> dict[str, Any]:
    return await one.aload_memory_variables(inputs) if flavour == "async" else one.load_memory_variables(inputs)


async def save(one: RagTunedMemory, flavour: Flavour, said: str, answered: str) -> None:
    if flavour == "async":
        await one.asave_context({"input": said}, {"output": answered})
    else:
        one.save_context({"input": said}, {"output": answered})


@FLAVOURS
async def test_the_last_turns_and_what_is_recalled(memory: Memory, flavour: Flavour) -> None:
    memory.record(episode(3))
    one = RagTunedMemory(memory=memory, session_id="s1", window=1)
    assert isinstance(one, BaseMemory)
    assert one.memory_variables == ["history"]
    await save(one, flavour, "my dog is called Rex", "noted")
    await save(one, flavour, "hello", "hi")
    history = (await load(one, flavour, {"input": "what does df say of db-3?"}))["history"]
    assert history.startswith(OPENING)
    assert "the disk of db-3 is full" in history
    assert history.endswith(f"{CLOSING}\n\nHuman: hello\nAI: hi")
    history = (await load(one, flavour, {"input": "how is my dog called?"}))["history"]
    assert "my dog is called Rex" in history.partition(CLOSING)[0]  # beyond the window
    shown = (await load(one, flavour, {"input": "hello hi"}))["history"]
    assert shown.count("hello") == 1  # what is shown anyway is not recalled too


@FLAVOURS
async def test_messages_and_variables_of_their_own(memory: Memory, flavour: Flavour) -> None:
    memory.record(episode(3))
    one = RagTunedMemory(
        memory=memory,
        session_id="s1",
        return_messages=True,
        recall_key="recalled",
        memory_key="chat",
        input_key="input",
    )
    await save(one, flavour, "hello", "hi")
    found = await load(one, flavour, {"input": "db-3?", "more": "x"})
    assert found["chat"] == [HumanMessage("hello"), AIMessage("hi")]
    (recalled,) = found["recalled"]
    assert isinstance(recalled, SystemMessage)
    assert "db-3" in recalled.text
    one = RagTunedMemory(memory=memory, session_id="s1", return_messages=True)
    assert [message.type for message in (await load(one, flavour, {"input": "db-3?"}))["history"]] == [
        *("system", "human", "ai")
    ]
    one = RagTunedMemory(memory=memory, session_id="s1", recall_key="recalled", human_prefix="Ann", ai_prefix="Bot")
    found = await load(one, flavour, {"input": "db-3?"})
    assert found["history"] == "Ann: hello\nBot: hi"
    assert found["recalled"].startswith(OPENING)


@pytest.mark.parametrize("inputs", [{}, {"a": "x", "b": "y"}, {"input": ""}, {"input": 7}])
def test_without_a_question_nothing_is_recalled(memory: Memory, inputs: dict[str, Any]) -> None:
    memory.record(episode(3))
    one = RagTunedMemory(memory=memory, session_id="s1")
    assert one.load_memory_variables(inputs) == {"history": ""}
    for options in ({"recall_k": 0}, {"token_budget": 0}):
        none = RagTunedMemory(memory=memory, session_id="s1", **options)  # type: ignore[arg-type]
        assert none.load_memory_variables({"input": "db-3"}) == {"history": ""}


def test_a_window_of_nothing_and_the_budget(memory: Memory) -> None:
    for number in range(1, 9):
        memory.record(episode(number))
    one = RagTunedMemory(memory=memory, session_id="s1", window=0, recall_k=20, token_budget=120)
    one.save_context({"input": "hello"}, {"output": "hi"})
    history = one.load_memory_variables({"input": "which disk is full?"})["history"]
    assert history.endswith(CLOSING)
    assert len(history) < 120 * 6
    assert "Human:" not in history


def test_a_session_is_its_own_and_outlives_the_chain(memory: Memory) -> None:
    first, second = (RagTunedMemory(memory=memory, session_id=name, recall_k=0) for name in ("s1", "s2"))
    first.save_context({"input": "hello"}, {"output": "hi"})
    assert second.load_memory_variables({}) == {"history": ""}
    again = RagTunedMemory(memory=memory, session_id="s1", recall_k=0)
    assert again.load_memory_variables({}) == {"history": "Human: hello\nAI: hi"}
    assert len(RagTunedChatMessageHistory(memory, "s1").messages) == 2
    again.clear()
    assert first.load_memory_variables({}) == {"history": ""}


@FLAVOURS
async def test_in_a_conversation_chain(memory: Memory, flavour: Flavour) -> None:
    memory.record(episode(3))
    model = script("noted", "Rex", "it was full")
    chain = ConversationChain(llm=model, memory=RagTunedMemory(memory=memory, session_id="s1"))
    answers = []
    for said in ("my dog is called Rex", "how is my dog called?", "what was with db-3?"):
        asked = {"input": said}
        answer = await chain.ainvoke(asked) if flavour == "async" else await asyncio.to_thread(chain.invoke, asked)
        answers.append(answer["response"])
    assert answers == ["noted", "Rex", "it was full"]
    last = str(model.prompts[-1][-1].content)
    assert "Human: my dog is called Rex\nAI: noted" in last
    assert "the disk of db-3 is full" in last.partition(CLOSING)[0]
    (session,) = [one for one in memory.export() if one.source == "langchain-chat"]
    assert "recalled-memory" not in session.model_dump_json()
    assert len(session.steps) == 6


def test_in_an_agent_executor(memory: Memory) -> None:
    @tool
    def df(host: str) -> str:
        """How full a disk is."""
        return f"{host} is full"

    model = script(calls(("df", {"host": "db-1"}, "c1")), "it is full", "as I said")
    parts = [MessagesPlaceholder("history"), ("human", "{input}"), MessagesPlaceholder("agent_scratchpad")]
    agent = create_tool_calling_agent(model, [df], ChatPromptTemplate.from_messages([("system", "help"), *parts]))
    executor = AgentExecutor(
        agent=agent,
        tools=[df],
        memory=RagTunedMemory(memory=memory, session_id="s1", return_messages=True, recall_k=0, output_key="output"),
        return_intermediate_steps=True,
    )
    assert executor.invoke({"input": "is db-1 full?"})["output"].strip() == "it is full"
    executor.invoke({"input": "sure?"})
    assert [message.text.strip() for message in model.prompts[-1]] == ["help", "is db-1 full?", "it is full", "sure?"]


def test_users_are_never_mixed_and_must_be_known(memories: Memories) -> None:
    for user in ("alice", "bob"):
        RagTunedMemory(memory=memories, namespace=user, session_id="s1").save_context({"input": user}, {"output": "hi"})
    alice = RagTunedMemory(memory=memories, namespace="alice", session_id="s1")
    history = alice.load_memory_variables({"input": "alice bob"})["history"]
    assert "bob" not in history
    nobody = RagTunedMemory(memory=memories, session_id="s1")
    for use in (
        lambda: nobody.load_memory_variables({}),
        lambda: nobody.save_context({"input": "x"}, {"output": "y"}),
        nobody.clear,
    ):
        with pytest.raises(InvalidNamespace, match="names none"):
            use()
    with pytest.raises(InvalidNamespace):
        asyncio.run(nobody.aload_memory_variables({}))


@FLAVOURS
async def test_a_memory_that_fails_does_not_stop_the_chain(
    memory: Memory, flavour: Flavour, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def down(*args: Any, **options: Any) -> Any:
        raise StoreError("the store is down")

    async def adown(*args: Any, **options: Any) -> Any:
        raise StoreError("the store is down")

    for name in ("call", "recall"):
        monkeypatch.setattr(Memory, name, down)
        monkeypatch.setattr(Memory, f"a{name}", adown)
    one = RagTunedMemory(memory=memory, session_id="s1")
    assert await load(one, flavour, {"input": "db-3?"}) == {"history": ""}
    await save(one, flavour, "hello", "hi")
    assert [record.getMessage().partition(" the memory")[0][:28] for record in caplog.records] == [
        "the memory could not read th",
        "the memory could not recall,",
        "the memory could not save a ",
    ]
    strict = RagTunedMemory(memory=memory, session_id="s1", on_error="raise")
    with pytest.raises(StoreError, match="down"):
        await load(strict, flavour, {"input": "db-3?"})
    with pytest.raises(StoreError, match="down"):
        await save(strict, flavour, "hello", "hi")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"session_id": " "}, "a session id must be non-empty text"),
        ({"session_id": "s1", "window": -1}, "window"),
        ({"session_id": "s1", "recall_k": -1}, "recall_k"),
        ({"session_id": "s1", "recall_key": "history"}, "it is the memory_key 'history' too"),
        ({"session_id": "s1", "on_error": "ignore"}, "on_error"),
    ],
)
def test_bad_options(memory: Memory, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RagTunedMemory(memory=memory, **options)
    with pytest.raises(ValidationError, match="memory"):
        RagTunedMemory(memory="memory", session_id="s1")  # type: ignore[arg-type]


def test_it_shows_and_saves_no_memory_object(memory: Memory) -> None:
    one = RagTunedMemory(memory=memory, session_id="s1")
    assert "Memory object" not in repr(one)
    assert not {"memory", "chat_memory"} & one.model_dump().keys()
    assert isinstance(one.chat_memory, RagTunedChatMessageHistory)


def test_a_chain_of_its_own_prompt(memory: Memory) -> None:
    memory.record(episode(3))
    prompt = PromptTemplate.from_template("{recalled}\n{history}\nQ: {question}")
    model = script("full")
    one = RagTunedMemory(memory=memory, session_id="s1", recall_key="recalled", input_key="question")
    LLMChain(llm=model, prompt=prompt, memory=one).invoke({"question": "what was with db-3?"})
    assert str(model.prompts[0][0].content).startswith(OPENING)


def test_without_langchain_classic_it_says_what_to_install() -> None:
    program = """
import sys
sys.modules["langchain_classic"] = None
import langchain_rag_tuned_memory as package
package.RagTunedChatMessageHistory
try:
    package.RagTunedMemory
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'langchain-rag-tuned-memory[classic]'" in done.stdout


def test_without_langgraph_chains_are_recorded_and_the_store_says_what_to_install() -> None:
    program = """
import sys
sys.modules["langgraph"] = None
import langchain_rag_tuned_memory as package
package.TrajectoryRecorder
package.RagTunedChatMessageHistory
try:
    package.RagTunedStore
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'langchain-rag-tuned-memory[agents]'" in done.stdout
