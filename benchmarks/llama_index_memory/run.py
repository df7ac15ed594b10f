"""What ``RagTunedMemory`` costs an agent of LlamaIndex.

Run it with ``python benchmarks/llama_index_memory/run.py``; it writes ``result.json`` beside this file. The agent's
model is scripted and answers at once, so that what is left is the framework and its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.memory import BaseMemory, ChatMemoryBuffer

from llama_index.memory.rag_tuned import RagTunedMemory, TrajectoryRecorder
from rag_tuned_memory import Memory, Settings
from rag_tuned_memory.evaluation.stamp import machine, versions

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "integrations" / "llama-index" / "tests"))

from scripted_llm import ScriptedLLM, call, calls  # noqa: E402

Times = dict[str, float]


def milliseconds(seconds: list[float]) -> Times:
    """Median and 95th percentile."""
    ordered = sorted(seconds)
    return {
        "median": round(statistics.median(ordered) * 1000, 3),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))] * 1000, 3),
    }


def timed(work: Callable[[], object], times: int) -> list[float]:
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found


async def atimed(work: Callable[[], Awaitable[object]], times: int) -> list[float]:
    found = []
    for _ in range(times):
        started = time.perf_counter()
        await work()
        found.append(time.perf_counter() - started)
    return found


def user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def assistant(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def turn(number: int) -> list[ChatMessage]:
    """A question, a tool call, its result and an answer."""
    kwargs = {"tool_call_id": f"c{number}"}
    return [
        user(f"incident {number}: the disk of db-{number} is full, what should I do about it?"),
        calls(call("look", f"c{number}", host=f"db-{number}")),
        ChatMessage(
            role=MessageRole.TOOL, content=f"/var/log takes {number} GB of db-{number}", additional_kwargs=kwargs
        ),
        assistant(f"Remove the logs of db-{number} that are older than a month; that frees {number} GB."),
    ]


def fill(memory: Memory, episodes: int) -> None:
    """Earlier incidents, so that there is something to recall."""
    history = (
        {
            "source_id": f"earlier-{number}",
            "goal": f"free the disk of db-{number}",
            "steps": [{"kind": "message", "actor": "user", "text": one.content} for one in turn(number) if one.content],
            "outcome": {"success": True},
        }
        for number in range(episodes)
    )
    memory.record_many(history)


async def getting(memory: Memory, turns: int, repeat: int) -> dict[str, Any]:
    """``get`` for the second and later times of a turn, beside LlamaIndex's plain buffer with the same messages."""
    session = RagTunedMemory(memory, record=False, token_limit=100_000, on_error="raise")
    buffer = ChatMemoryBuffer.from_defaults(token_limit=100_000)
    messages = [message for number in range(turns) for message in turn(number)]
    for one in (session, buffer):
        one.put_messages([*messages, user("what helps when the disk of a database is full?")])
    first = timed(session.get, 1)
    session.get(), buffer.get()
    return {
        "messages": len(session.get_all()),
        "shown": len(session.get()),
        "first of the turn": milliseconds(first)["median"],
        "get": milliseconds(timed(session.get, repeat)),
        "aget": milliseconds(await atimed(session.aget, repeat)),
        "ChatMemoryBuffer.get": milliseconds(timed(buffer.get, repeat)),
        "ChatMemoryBuffer.aget": milliseconds(await atimed(buffer.aget, repeat)),
    }


async def putting(memory: Memory, turns: int) -> dict[str, Times]:
    """A question (a line in a file), an answer (its episode is stored), and what storing each message would cost."""
    asked, answered, each = [], [], []
    for number in range(turns):
        session = RagTunedMemory(memory, on_error="raise")
        question, *middle, answer = turn(number)
        asked += timed(lambda: session.put(question), 1)  # noqa: B023
        session.put_messages(middle)
        answered += timed(lambda: session.put(answer), 1)  # noqa: B023
        every = RagTunedMemory(memory, on_error="raise")
        for message in (question, *middle, answer):
            each += timed(lambda: (every.put(message), every.flush()), 1)  # noqa: B023
    return {
        "question": milliseconds(asked),
        "answer": milliseconds(answered),
        "any message, if each were stored at once": milliseconds(each),
    }


async def running(memory: Memory, runs: int) -> dict[str, Any]:
    """Whole runs with one tool call: with a plain buffer, with this memory, and recorded by the recorder."""

    def look(host: str) -> str:
        """Look at a host."""
        return f"the disk of {host} is full"

    async def once(session: BaseMemory) -> None:
        llm = ScriptedLLM([[call("look", host="db-1")], "Remove old logs."])
        agent = FunctionAgent(tools=[look], llm=llm, streaming=False)
        await agent.run(user_msg="what helps when the disk of db-1 is full?", memory=session)

    async def recorded() -> None:
        with recorder.recording(session_id="benchmark"):
            await once(ChatMemoryBuffer.from_defaults())

    plain = await atimed(lambda: once(ChatMemoryBuffer.from_defaults()), runs)
    remembering = await atimed(lambda: once(RagTunedMemory(memory, on_error="raise")), runs)
    async with TrajectoryRecorder(memory, on_error="raise") as recorder:
        seen = await atimed(recorded, runs)
    return {
        "ChatMemoryBuffer": milliseconds(plain[1:]),
        "RagTunedMemory": milliseconds(remembering[1:]),
        "ChatMemoryBuffer and TrajectoryRecorder": milliseconds(seen[1:]),
    }


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with Memory("benchmark", settings=Settings(home=folder, embedder=options.embedder)) as memory:
        await asyncio.to_thread(fill, memory, options.episodes)
        return {
            "embedder": options.embedder,
            "episodes": options.episodes,
            "milliseconds": {
                "get, warm": [await getting(memory, turns, options.repeat) for turns in (1, 10, 50)],
                "put": await putting(memory, options.turns),
                "run with one tool call": await running(memory, options.turns),
            },
            "load_average_1_minute": round(os.getloadavg()[0], 2),
            "machine": machine(),
            "versions": {**versions(), "llama-index-core": version("llama-index-core")},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", default="all-MiniLM-L6-v2", help="a name that `rtm pull` knows, or hashing")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=500)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(options, Path(folder)))
    text = json.dumps(result, indent=2) + "\n"
    Path(__file__).with_name("result.json").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
