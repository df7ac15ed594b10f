"""LangGraph with the memory as its store: an assistant that keeps what users like, and finds it by meaning.

    python langgraph_store.py                        no weights: a model that follows a script
    python langgraph_store.py --model openai:gpt-5   any chat model that calls tools

Each user has a memory of their own; what the graph stores for one is never found for another, can be recalled and
learned like any episode, and is gone from all of it when it is deleted. ``--home FOLDER`` keeps it; by default it is
gone afterwards.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain.tools import ToolRuntime
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from langchain_rag_tuned_memory import RagTunedStore
from rag_tuned_memory import Memories, Settings

LIKES = ("likes",)


@tool
def keep(what: str, about: str, runtime: ToolRuntime) -> str:
    """Keep what the user likes; ``about`` names the matter in a word."""
    assert runtime.store is not None
    runtime.store.put(LIKES, about, {"text": what})
    return f"kept under {about}"


@tool
def look_up(question: str, runtime: ToolRuntime) -> str:
    """Find what the user likes."""
    assert runtime.store is not None
    found = runtime.store.search(LIKES, query=question, limit=2)
    return "\n".join(item.value["text"] for item in found) or "nothing is known"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a chat model for init_chat_model; by default a script")
    parser.add_argument("--home", type=Path, help="where the memories are kept")
    given = parser.parse_args()
    with ExitStack() as stack:
        home = given.home or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        memories = stack.enter_context(Memories(settings=Settings(home=home, embedder="hashing")))
        model = init_chat_model(given.model) if given.model else ScriptedModel(messages=script())
        store = RagTunedStore(memories)  # the run's config says whose items are meant
        agent = create_agent(model, [keep, look_up], system_prompt="You know what users like.", store=store)
        for user, said in [
            ("alice", "I drink green tea in the morning."),
            ("bob", "I ride my red bicycle to work."),
            ("alice", "What do I drink?"),
            ("bob", "What do I drink?"),
        ]:
            config: Any = {"configurable": {"namespace": user}}
            answer = agent.invoke({"messages": [("user", said)]}, config)
            print(f"{user}: {said}\n  {answer['messages'][-1].text}")
        show(memories)


def show(memories: Memories) -> None:
    """What the store holds is the memory's: it is recalled, and deleting it forgets it."""
    for user in ("alice", "bob"):
        found = memories.of(user).recall("what does the user drink and ride?")
        print(f"{user}'s memory:", *(one.text for one in found.results))
    store = RagTunedStore(memories, namespace="alice")
    for item in store.search(LIKES):
        store.delete(item.namespace, item.key)
    print("After alice's items were deleted:", len(memories.of("alice").recall("green tea").results), "passages")


class ScriptedModel(GenericFakeChatModel):
    """Says what the script says, with any tools."""

    def bind_tools(self, tools: Any, **options: Any) -> Any:  # noqa: D102
        return self


def script() -> Iterator[AIMessage]:
    """What a model would say."""
    yield call("keep", what="green tea in the morning", about="drink")
    yield AIMessage("I will remember your tea.")
    yield call("keep", what="a red bicycle, to work", about="ride")
    yield AIMessage("I will remember your bicycle.")
    yield call("look_up", question="What does the user drink?")
    yield AIMessage("You drink green tea.")
    yield call("look_up", question="What does the user drink?")
    yield AIMessage("I know only of your bicycle.")


def call(name: str, **arguments: str) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"call-{name}"}])


if __name__ == "__main__":
    main()
