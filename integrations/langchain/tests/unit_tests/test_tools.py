"""The memory's tools in an agent, with the middleware and without."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from scripted_agent import Flavour, calls, episodes, run, script, thread

from langchain_rag_tuned_memory import RagTunedMemoryMiddleware, memory_tools
from rag_tuned_memory import Memories, Memory, Trajectory
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace, StoreUnavailable

pytestmark = pytest.mark.parametrize("flavour", ["sync", "async"])


@pytest.fixture
def episode_id(memory: Memory) -> str:
    steps = [{"kind": "message", "text": "purge the old logs of orion"}]
    return memory.record({"goal": "the disk was full", "steps": steps}).id


async def said(memory: Memory | Memories, flavour: Flavour, name: str, args: dict[str, Any], **options: Any) -> Any:
    """What the model is told when it calls a tool."""
    agent = create_agent(script(calls((name, args, "c1")), "done"), memory_tools(memory))
    return (await run(agent, flavour, "go", **options))["messages"][2]


async def test_the_model_sees_neither_whose_memory_nor_the_runtime(memory: Memory, flavour: Flavour) -> None:
    told = [convert_to_openai_tool(tool)["function"] for tool in memory_tools(memory)]
    assert {one["name"]: sorted(one["parameters"]["properties"]) for one in told} == {
        "recall_memory": ["k", "query"],
        "remember": ["text"],
        "forget_memory": ["episode_ids"],
        "memory_feedback": ["episode_id", "success", "text"],
    }
    assert all(one["description"] for one in told)


async def test_recalling_tells_the_ids(memory: Memory, flavour: Flavour, episode_id: str) -> None:
    message = await said(memory, flavour, "recall_memory", {"query": "orion"})
    assert "purge the old logs" in message.text
    assert message.text.startswith("<recalled-memory untrusted")
    assert episode_id in message.text.split("</recalled-memory>")[1]
    assert (await said(memory, flavour, "recall_memory", {"query": "x", "k": 0})).status == "error"


async def test_nothing_is_found(memory: Memory, flavour: Flavour) -> None:
    assert (await said(memory, flavour, "recall_memory", {"query": "orion"})).text == "Nothing was found."
    empty = await said(memory, flavour, "recall_memory", {"query": " "})
    assert (empty.status, "query" in empty.text) == ("error", True)


async def test_what_is_remembered_is_there_once(memory: Memory, flavour: Flavour) -> None:
    for _ in range(2):
        message = await said(memory, flavour, "remember", {"text": "orion reboots on Sundays"})
        assert message.text.startswith("Remembered as ")
    (note,) = memory.export()
    assert [(step.actor, step.text) for step in note.steps] == [("note", "orion reboots on Sundays")]
    assert note.started_at is not None
    assert note.id in message.text
    assert (await said(memory, flavour, "remember", {"text": "  "})).status == "error"


@pytest.mark.parametrize("answer", [True, "yes", " YES ", {"confirm": True}, {"confirm": "approve"}])
async def test_forgetting_that_is_confirmed(memory: Memory, flavour: Flavour, episode_id: str, answer: Any) -> None:
    waiting, message = await confirm(memory, flavour, [episode_id, "nobody"], answer)
    assert waiting["action"] == "forget_memory"
    assert waiting["episodes"] == [{"id": episode_id, "about": "the disk was full", "time": None}]
    assert episode_id in message.text
    assert list(memory.export()) == []


@pytest.mark.parametrize("answer", [False, None, "no", "yes, but not this one", {}, {"confirm": False}, 1, ["yes"]])
async def test_forgetting_that_is_not(memory: Memory, flavour: Flavour, episode_id: str, answer: Any) -> None:
    _, message = await confirm(memory, flavour, [episode_id], answer)
    assert "not confirmed" in message.text
    assert len(list(memory.export())) == 1


async def confirm(memory: Memory, flavour: Flavour, ids: list[str], answer: Any) -> tuple[Any, Any]:
    model = script(calls(("forget_memory", {"episode_ids": ids}, "c1")), "done")
    agent = create_agent(model, memory_tools(memory), checkpointer=InMemorySaver())
    waiting = await run(agent, flavour, "forget it", config=thread())
    assert len(list(memory.export())) == 1, "forgotten before anybody said so"
    (question,) = waiting["__interrupt__"]
    # a bare None would be no answer at all
    resume = Command(resume={question.id: answer})
    return question.value, (await run(agent, flavour, resume, config=thread()))["messages"][2]


async def test_forgetting_without_a_checkpointer_forgets_nothing(
    memory: Memory, flavour: Flavour, episode_id: str
) -> None:
    agent = create_agent(script(calls(("forget_memory", {"episode_ids": [episode_id]}, "c1"))), memory_tools(memory))
    waiting = await run(agent, flavour, "forget it")
    assert waiting["__interrupt__"]
    assert len(list(memory.export())) == 1


async def test_forgetting_what_is_not_there(memory: Memory, flavour: Flavour) -> None:
    for ids in (["nobody"], []):
        message = await said(memory, flavour, "forget_memory", {"episode_ids": ids})
        assert (message.status, "No such episode" in message.text) == ("error", True)


async def test_feedback(memory: Memory, flavour: Flavour, episode_id: str) -> None:
    args = {"episode_id": episode_id, "text": "it came back", "success": False}
    assert (await said(memory, flavour, "memory_feedback", args)).text == "Noted."
    (episode,) = memory.export()
    assert (episode.outcome.success, episode.outcome.feedback) == (False, "it came back")
    missing = await said(memory, flavour, "memory_feedback", {**args, "episode_id": "nobody"})
    assert (missing.status, "'nobody'" in missing.text) == ("error", True)
    assert (await said(memory, flavour, "memory_feedback", {**args, "text": ""})).status == "error"


async def test_what_the_memory_cannot_do_is_told_to_the_model(
    memory: Memory, flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*given: Any, **options: Any) -> Any:
        raise StoreUnavailable("the store is down")

    monkeypatch.setattr(Memory, "recall", down)
    monkeypatch.setattr(Memory, "arecall", down)
    message = await said(memory, flavour, "recall_memory", {"query": "orion"})
    assert (message.status, "the store is down" in message.text) == ("error", True)


async def test_each_user_has_their_own(memories: Memories, flavour: Flavour) -> None:
    for user in ("alice", "bob"):
        await said(memories, flavour, "remember", {"text": f"{user} likes tea"}, config=thread(user, namespace=user))
        await said(memories, flavour, "remember", {"text": f"{user} likes rain"}, context={"namespace": user})
    for user in ("alice", "bob"):
        assert {one.steps[0].text for one in notes(memories.of(user))} == {f"{user} likes tea", f"{user} likes rain"}
    with pytest.raises(InvalidNamespace, match="does not say whose memory"):
        await said(memories, flavour, "remember", {"text": "of nobody"})


def notes(memory: Memory) -> list[Trajectory]:
    return list(memory.export())


async def test_outside_of_an_agent(memory: Memory, memories: Memories, flavour: Flavour, episode_id: str) -> None:
    def invoke(given: Memory | Memories) -> Any:
        return memory_tools(given, names=["recall_memory"])[0].invoke({"query": "orion"})

    assert "purge the old logs" in invoke(memory)
    with pytest.raises(InvalidNamespace):
        invoke(memories)


async def test_the_middleware_may_bring_them(memory: Memory, flavour: Flavour, episode_id: str) -> None:
    """What is remembered or forgotten in a turn counts from the next model call on."""
    model = script(
        calls(("remember", {"text": "orion has a twin called castor"}, "c1")),
        calls(("forget_memory", {"episode_ids": [episode_id]}, "c2")),
        "done",
    )
    agent = create_agent(model, middleware=[RagTunedMemoryMiddleware(memory, tools=True)], checkpointer=InMemorySaver())
    await run(agent, flavour, "orion again", config=thread())
    await run(agent, flavour, Command(resume=True), config=thread())
    before, after_note, after_forgetting = model.injected
    assert "purge" in before
    assert "castor" not in before
    assert "castor" in after_note
    assert "castor" in after_forgetting
    assert "purge" not in after_forgetting
    (episode,) = episodes(memory)
    assert [step.tool for step in episode.steps if step.kind == "tool_result"] == ["remember", "forget_memory"]


async def test_what_was_recalled_by_a_tool_is_not_stored_again(
    memory: Memory, flavour: Flavour, episode_id: str
) -> None:
    model = script(calls(("recall_memory", {"query": "orion"}, "c1")), "done")
    own = RagTunedMemoryMiddleware(memory, tools=["recall_memory"])
    await run(create_agent(model, middleware=[own]), flavour, "what do you know?")
    assert model.options[0]["tools"] == ["recall_memory"]
    (episode,) = episodes(memory)
    (result,) = [step for step in episode.steps if step.kind == "tool_result"]
    assert "purge" not in result.text
    assert episode_id in result.text


async def test_an_unknown_tool_is_refused(memory: Memory, flavour: Flavour) -> None:
    with pytest.raises(InvalidInput, match=r"'recal_memory'.*recall_memory, remember, forget_memory, memory_feedback"):
        memory_tools(memory, names=["recal_memory"])
    assert [tool.name for tool in memory_tools(memory, names=["remember", "remember"])] == ["remember"]
