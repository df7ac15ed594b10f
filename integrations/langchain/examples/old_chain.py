"""Old code that takes a memory class: a ConversationChain that remembers after a restart, and what other runs taught.

    python old_chain.py                        no weights: a model that follows a script
    python old_chain.py --model openai:gpt-5   any chat model

``--home FOLDER`` keeps the memory; run it twice with one, and the second run goes on with the conversation.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path

from langchain.chat_models import init_chat_model
from langchain_classic.chains import ConversationChain
from langchain_core.language_models import BaseChatModel, FakeListChatModel

from langchain_rag_tuned_memory import RagTunedMemory
from rag_tuned_memory import Memory, Settings

QUESTIONS = ["My dog is called Rex.", "What is my dog called?", "Why did db-1 not answer last week?"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a chat model for init_chat_model; by default a script")
    parser.add_argument("--home", type=Path, help="where the memory is kept")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*ConversationChain.*deprecated.*")
    with ExitStack() as stack:
        home = given.home or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        memory = stack.enter_context(Memory("support", settings=Settings(home=home, embedder="hashing")))
        memory.record(incident())
        talk(make_chain(memory, given.model))
        print("\nEpisodes:", *(f"{one.source} ({len(one.steps)} steps)" for one in memory.export()))


def make_chain(memory: Memory, model: str | None) -> ConversationChain:
    llm: BaseChatModel = init_chat_model(model) if model else FakeListChatModel(responses=ANSWERS)
    return ConversationChain(llm=llm, memory=RagTunedMemory(memory=memory, session_id="desk-1", window=3))


def talk(chain: ConversationChain) -> None:
    for question in QUESTIONS:
        seen = chain.memory.load_memory_variables({"input": question})["history"] if chain.memory else ""
        told = [line for line in seen.splitlines() if "disk" in line or "Rex" in line]
        print(f"> {question}")
        print(f"  the model is shown: {told[0].strip() if told else 'nothing of it'}")
        print(f"  {chain.invoke({'input': question})['response']}")


def incident() -> dict[str, object]:
    """What another agent went through."""
    return {
        "source_id": "incident-1",
        "goal": "bring db-1 back",
        "steps": [
            {"kind": "tool_call", "tool": "df", "arguments": {"host": "db-1"}},
            {"kind": "tool_result", "tool": "df", "text": "the disk of db-1 is full"},
        ],
        "outcome": {"success": True},
    }


ANSWERS = ["A fine name.", "Rex.", "Its disk was full."]

if __name__ == "__main__":
    main()
