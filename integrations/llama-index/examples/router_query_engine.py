"""An agent's history beside a document index, in one RouterQueryEngine: the memory's routing chooses between them.

    python router_query_engine.py                  no weights: a hashing embedder, and a model that quotes its prompt
    python router_query_engine.py --real           the models that `rtm pull` brought

Ask your own with ``--ask "…"``.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from llama_index.core import Document, SummaryIndex
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.tools import QueryEngineTool

from llama_index.memory.rag_tuned import RagTunedLLM, RagTunedQueryEngine, RagTunedSelector
from rag_tuned_memory import Memory, Settings
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.serving.base import Request
from rag_tuned_memory.serving.scripted import ScriptedBackend

MANUALS = [
    "A certificate is rotated by the command rotate_certificate. It needs the approval of the security officer.",
    "Holiday requests are made two weeks ahead, with the form on the intranet.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="ask the models that were pulled")
    parser.add_argument("--ask", action="append", help="a question; may be given several times")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, open_memory(Path(home), real=given.real) as memory:
        history = incidents("operations", episodes=8)
        memory.record_many(history)
        asked = given.ask or [
            f"What was the cause of {history[2].source_id}?",
            "How early must I hand in a holiday form?",
            "Did the agent handle INC-0000?",
        ]
        router = make_router(memory)
        for question in asked:
            show(router, question)


def open_memory(home: Path, *, real: bool) -> Memory:
    if real:
        return Memory("operations", settings=Settings(home=home))
    settings = Settings(home=home, embedder="hashing")
    return Memory("operations", settings=settings, backend=ScriptedBackend(quoting))


def make_router(memory: Memory) -> RouterQueryEngine:
    # The base model writes the answers from documents: the same weights, without memory.
    writer = RagTunedLLM(memory, model="base", max_tokens=64)
    manuals = SummaryIndex.from_documents([Document(text=text) for text in MANUALS])
    tools = [
        QueryEngineTool.from_defaults(
            RagTunedQueryEngine(memory), name="memory", description="What the agent did, incident by incident."
        ),
        QueryEngineTool.from_defaults(
            manuals.as_query_engine(llm=writer), name="manuals", description="How things are done here."
        ),
    ]
    return RouterQueryEngine(RagTunedSelector(memory), tools, llm=writer)


def show(router: RouterQueryEngine, question: str) -> None:
    response = router.query(question)
    told = response.metadata or {}
    print(f"\n? {question}")
    print(f"  {told['selector_result'].reason}")
    print(f"  > {' '.join(str(response).split())}")
    for node in response.source_nodes[:2]:
        print(f"    [{node.metadata.get('time', 'manual')[:10]}] {' '.join(node.text.split())[:90]}")


def quoting(request: Request) -> str:
    """A double of a model: it reads out the line of its prompt that has most words of the question."""
    prompt = "\n".join(message.content for message in request.messages)
    question = request.messages[-1].content.rpartition("Query: ")[2]
    asked = words(question) - {"what", "must", "answer"}
    quoted = [line for line in prompt.splitlines() if line.startswith("- ") or line in MANUALS]
    best = max(quoted, key=lambda line: len(asked & words(line)), default="I do not know.")
    return best.removeprefix("- ")


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w-]{4,}", text.lower()))


if __name__ == "__main__":
    main()
