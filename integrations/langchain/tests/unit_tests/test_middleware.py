"""What a run puts into the prompt and leaves in the memory, sync and async alike."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langgraph.checkpoint.memory import InMemorySaver
from scripted_agent import Flavour, ScriptedChat, calls, episodes, run, script, thread, told

from langchain_rag_tuned_memory import RagTunedMemoryMiddleware
from rag_tuned_memory import Filter, Memories, Memory, Outcome
from rag_tuned_memory.distil.acting import tools_of
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.recall.budget import estimate_tokens

pytestmark = pytest.mark.parametrize("flavour", ["sync", "async"])


def look(at: str) -> str:
    """Look at something."""
    return f"the {at} is full"


@pytest.fixture
def known(memory: Memory) -> Memory:
    memory.record({"goal": "the disk of orion was full", "steps": [{"kind": "message", "text": "purge the old logs"}]})
    return memory


@pytest.fixture
def asked(known: Memory, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The queries that the memory was asked."""
    queries: list[str] = []
    plain, awaited = Memory.recall, Memory.arecall

    def recall(self: Memory, query: str, **options: Any) -> Any:
        queries.append(query)
        return plain(self, query, **options)

    async def arecall(self: Memory, query: str, **options: Any) -> Any:
        queries.append(query)
        return await awaited(self, query, **options)

    monkeypatch.setattr(Memory, "recall", recall)
    monkeypatch.setattr(Memory, "arecall", arecall)
    return queries


async def test_what_is_recalled_is_the_last_block_of_the_system_message(known: Memory, flavour: Flavour) -> None:
    model = script("done")
    cached = {"type": "text", "text": "You repair things.", "cache_control": {"type": "ephemeral"}}
    system = SystemMessage(content=[cached])
    agent = create_agent(model, system_prompt=system, middleware=[RagTunedMemoryMiddleware(known)])
    result = await run(agent, flavour, "what about the disk of orion?")
    (prompt,) = model.prompts
    assert isinstance(prompt[0], SystemMessage)
    assert prompt[0].content[0] == cached
    assert len(prompt[0].content) == 2
    assert 'untrusted="true"' in prompt[0].content[1]["text"]  # type: ignore[index]
    assert "purge the old logs" in model.injected[0]
    assert set(result) == {"messages"}, "private state leaks"
    assert [type(one) for one in result["messages"]] == [HumanMessage, AIMessage]


@pytest.mark.parametrize("system", [None, "You repair things.", ""])
async def test_any_system_prompt_is_kept(known: Memory, flavour: Flavour, system: str | None) -> None:
    model = script("done")
    agent = create_agent(model, system_prompt=system, middleware=[RagTunedMemoryMiddleware(known)])
    await run(agent, flavour, "what about the disk of orion?")
    first = model.prompts[0][0]
    assert isinstance(first, SystemMessage)
    assert str(first.text).startswith(system or "<recalled-memory")
    assert model.injected[0]


async def test_it_recalls_once_a_turn_and_shows_it_at_every_call(
    known: Memory, asked: list[str], flavour: Flavour
) -> None:
    model = script(calls(("look", {"at": "disk"}, "c1")), calls(("look", {"at": "fan"}, "c2")), "done", "again")
    agent = create_agent(model, [look], middleware=[RagTunedMemoryMiddleware(known)], checkpointer=InMemorySaver())
    await run(agent, flavour, "what about the disk of orion?", config=thread())
    assert asked == ["what about the disk of orion?"]
    assert len(set(model.injected)) == 1
    assert model.injected[0]
    await run(agent, flavour, "and its fan?", config=thread())
    assert asked == ["what about the disk of orion?", "and its fan?"]


async def test_a_run_is_recorded_as_it_happened(memory: Memory, flavour: Flavour) -> None:
    model = script(calls(("look", {"at": "disk"}, "c1"), text="I will look."), "The disk is full.")
    agent = create_agent(model, [look], middleware=[RagTunedMemoryMiddleware(memory)], checkpointer=InMemorySaver())
    await run(agent, flavour, "check orion", config=thread("talk"))
    (episode,) = episodes(memory)
    assert told(episode) == [
        "message user: check orion",
        "message assistant: I will look.",
        'tool_call c1: look({"at": "disk"})',
        "tool_result c1: the disk is full",
        "message assistant: The disk is full.",
    ]
    assert (episode.goal, episode.outcome, episode.metadata["thread_id"]) == ("check orion", Outcome(), "talk")
    assert episode.started_at is not None
    assert episode.ended_at is not None
    assert episode.started_at < episode.ended_at
    assert memory.recall("orion disk").results, "it can be recalled when the run has ended"


async def test_what_the_agent_was_equipped_with_is_noted(known: Memory, flavour: Flavour) -> None:
    agent = create_agent(
        script("Nothing to do."),
        [look],
        system_prompt="You look after orion.",
        middleware=[RagTunedMemoryMiddleware(known)],
    )
    await run(agent, flavour, "check orion disk")
    episode = next(one for one in episodes(known) if one.goal == "check orion disk")
    (tool,) = tools_of(episode.metadata)
    assert (tool.signature, tool.description) == ("look(at: string)", "Look at something.")
    assert episode.metadata["system"] == "You look after orion.", "without what was recalled"


async def test_what_was_injected_is_never_stored(known: Memory, flavour: Flavour) -> None:
    model = ScriptedChat(answer=lambda messages: f"I was told: {messages[0].text}")
    agent = create_agent(model, middleware=[RagTunedMemoryMiddleware(known)])
    await run(agent, flavour, "what about the disk of orion?")
    assert "purge" in model.injected[0]
    (episode,) = episodes(known)
    assert "purge" not in "".join(told(episode))
    assert "I was told:" in "".join(told(episode))


async def test_each_turn_of_a_conversation_is_an_episode(memory: Memory, flavour: Flavour) -> None:
    agent = create_agent(
        script("one", "two"), middleware=[RagTunedMemoryMiddleware(memory)], checkpointer=InMemorySaver()
    )
    for said in ("first", "second"):
        await run(agent, flavour, said, config=thread())
    assert [told(one) for one in episodes(memory)] == [
        ["message user: first", "message assistant: one"],
        ["message user: second", "message assistant: two"],
    ]


async def test_without_a_checkpointer_only_the_last_turn_is_recorded(memory: Memory, flavour: Flavour) -> None:
    """The client sends the whole conversation each time, and its own ids may be the same ones."""
    agent = create_agent(script("two", "three"), middleware=[RagTunedMemoryMiddleware(memory)])
    history = [HumanMessage("first", id="1"), AIMessage("one", id="2"), HumanMessage("second", id="3")]
    for _ in range(2):
        await run(agent, flavour, {"messages": history})
    assert sorted(told(one)[-1] for one in episodes(memory)) == ["message assistant: three", "message assistant: two"]
    assert {told(one)[0] for one in episodes(memory)} == {"message user: second"}


async def test_several_messages_at_once_are_one_turn(memory: Memory, flavour: Flavour) -> None:
    agent = create_agent(script("done"), middleware=[RagTunedMemoryMiddleware(memory)], checkpointer=InMemorySaver())
    await run(agent, flavour, {"messages": [("user", "one more thing"), ("user", "check orion")]}, config=thread())
    (episode,) = episodes(memory)
    assert told(episode)[:2] == ["message user: one more thing", "message user: check orion"]


async def test_the_caller_may_say_how_it_went(memory: Memory, flavour: Flavour) -> None:
    def outcome(state: Any) -> Outcome:
        return Outcome(success="done" in str(state["messages"][-1].text), score=0.5)

    agent = create_agent(script("done"), middleware=[RagTunedMemoryMiddleware(memory, outcome=outcome)])
    await run(agent, flavour, "check orion")
    assert episodes(memory)[0].outcome == Outcome(success=True, score=0.5)


async def test_it_may_recall_without_recording(known: Memory, flavour: Flavour) -> None:
    model = script(calls(("look", {"at": "disk"}, "c1")), "done")
    agent = create_agent(model, [look], middleware=[RagTunedMemoryMiddleware(known, record=False)])
    await run(agent, flavour, "what about the disk of orion?")
    assert all(model.injected)
    assert episodes(known) == []


async def test_it_may_record_without_recalling(known: Memory, asked: list[str], flavour: Flavour) -> None:
    model = script("done")
    agent = create_agent(model, middleware=[RagTunedMemoryMiddleware(known, mode="record")])
    await run(agent, flavour, "what about the disk of orion?")
    assert (model.injected, asked) == ([""], [])
    assert len(episodes(known)) == 1


async def test_limits_hold(known: Memory, flavour: Flavour) -> None:
    for number in range(20):
        known.record(
            {"source": "test", "source_id": str(number), "steps": [{"kind": "message", "text": "orion " * 60}]}
        )
    model = script("one", "two", "three")
    for options in ({"k": 2}, {"token_budget": 300}, {"where": Filter(source="nowhere")}):
        agent = create_agent(model, middleware=[RagTunedMemoryMiddleware(known, record=False, **options)])  # type: ignore[arg-type]
        await run(agent, flavour, "orion")
    few, short, none = model.injected
    assert few.count("\n- ") == 2
    assert 0 < estimate_tokens([short])[0] <= 300
    assert none == ""


async def test_a_turn_does_not_recall_itself(memory: Memory, flavour: Flavour) -> None:
    """The run that goes on after an error is in the store already, and in the prompt anyway."""
    model = script(RuntimeError("away"), "done")
    agent = create_agent(model, middleware=[RagTunedMemoryMiddleware(memory)], checkpointer=InMemorySaver())
    with pytest.raises(RuntimeError, match="away"):
        await run(agent, flavour, "check orion", config=thread())
    assert len(episodes(memory)) == 1
    await run(agent, flavour, None, config=thread())
    assert model.injected == ["", ""]


async def test_two_users_at_once_never_meet(memories: Memories, flavour: Flavour) -> None:
    users = [f"user-{number}" for number in range(8)]
    for user in users:
        memories.of(user).record({"steps": [{"kind": "message", "text": f"the secret word of {user} is {user}-word"}]})
    model = ScriptedChat(answer=lambda messages: str(messages[-1].text).replace("what", "heard"))
    agent = create_agent(model, middleware=[RagTunedMemoryMiddleware(memories)], checkpointer=InMemorySaver())

    async def talk(user: str) -> None:
        for turn in range(3):
            config = thread(user, namespace=user)
            await run(agent, flavour, f"what is the secret word? {user} {turn}", config=config)

    await asyncio.gather(*(talk(user) for user in users))
    for prompt, injected in zip(model.prompts, model.injected, strict=True):
        (own,) = [user for user in users if f"{user} " in str(prompt[-1].text)]
        assert f"{own}-word" in injected
        assert not [user for user in users if user != own and f"{user}-word" in injected]
    for user in users:
        found = episodes(memories.of(user))
        assert len(found) == 3
        assert all(user in line for one in found for line in told(one))


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "telepathy"},
        {"k": 0},
        {"token_budget": -1},
        {"on_error": "ignore"},
        {"tools": ["recal_memory"]},
        {"namespace": 7},
    ],
)
async def test_wrong_arguments_say_what_is_allowed(memory: Memory, flavour: Flavour, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as raised:
        RagTunedMemoryMiddleware(memory, **options)
    assert next(iter(options)) in str(raised.value)


async def test_the_same_middleware_twice_is_refused_and_two_memories_may_have_names(
    memory: Memory, memories: Memories, flavour: Flavour
) -> None:
    with pytest.raises(AssertionError, match="duplicate"):
        create_agent(script(), middleware=[RagTunedMemoryMiddleware(memory), RagTunedMemoryMiddleware(memory)])
    both = [
        RagTunedMemoryMiddleware(memory),
        RagTunedMemoryMiddleware(memories, namespace="team", name="TeamMemory"),
    ]
    model = script(calls(("look", {"at": "disk"}, "c1")), "done", "again")
    agent = create_agent(model, [look], middleware=both, checkpointer=InMemorySaver())
    await run(agent, flavour, "check orion", config=thread())
    assert [told(one) for one in episodes(memory)] == [told(one) for one in episodes(memories.of("team"))]
    assert len(told(episodes(memory)[0])) == 4
    await run(agent, flavour, "check orion again", config=thread())
    assert model.prompts[-1][0].text.count("<recalled-memory") == 2
