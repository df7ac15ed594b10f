"""An agent that asks before it deletes anything, and remembers what it was told, whoever goes on with it.

    python human_in_the_loop.py                        asks you; no weights: a model that follows a script
    python human_in_the_loop.py --answer approve       or reject; asks nobody
    python human_in_the_loop.py --stop                 stops at the question; run it again to go on, in another process
    python human_in_the_loop.py --model openai:gpt-5   any chat model that calls tools

``--home FOLDER`` keeps memory and conversation; by default they are gone afterwards.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command

from langchain_rag_tuned_memory import ChatRagTuned, RagTunedMemoryMiddleware
from rag_tuned_memory import Memory, Settings
from rag_tuned_memory.serving.base import Request
from rag_tuned_memory.serving.scripted import ScriptedBackend

TASK = "The disk of db-1 is full. Make room."
CONVERSATION: Any = {"configurable": {"thread_id": "db-1"}}


@tool
def disk_usage(host: str) -> str:
    """What takes the room on a host's disk."""
    return f"{host}: 96 % used; /var/log 210 GB, of which 180 GB are older than 30 days"


@tool
def delete_logs(host: str, older_than_days: int) -> str:
    """Delete old logs of a host."""
    return f"{host}: 180 GB freed, 41 % used"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a chat model for init_chat_model; by default a script")
    parser.add_argument("--answer", choices=("approve", "reject"), help="instead of asking you")
    parser.add_argument("--stop", action="store_true", help="stop at the question")
    parser.add_argument("--home", type=Path, help="where memory and conversation are kept")
    given = parser.parse_args()
    with ExitStack() as stack:
        home = given.home or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        home.mkdir(parents=True, exist_ok=True)
        settings = Settings(home=home, embedder="hashing")
        memory = stack.enter_context(Memory("operations", settings=settings, backend=ScriptedBackend(script)))
        saver = stack.enter_context(SqliteSaver.from_conn_string(str(home / "conversations.db")))
        middleware = RagTunedMemoryMiddleware(memory, tools=["recall_memory"])
        stack.callback(middleware.close)
        model = init_chat_model(given.model) if given.model else ChatRagTuned(memory=memory, model="base")
        agent = make_agent(model, middleware, saver)
        work(agent, given.answer, stop=given.stop)
        show(memory)


def make_agent(model: BaseChatModel, middleware: RagTunedMemoryMiddleware, saver: SqliteSaver) -> Any:
    ask_first = HumanInTheLoopMiddleware(interrupt_on={"delete_logs": {"allowed_decisions": ["approve", "reject"]}})
    return create_agent(
        model,
        [disk_usage, delete_logs],
        system_prompt="You keep servers running.",
        middleware=[middleware, ask_first],
        checkpointer=saver,
    )


def work(agent: Any, answer: str | None, *, stop: bool) -> None:
    """Do the task, or go on with it where an earlier process stopped."""
    waiting = agent.get_state(CONVERSATION).interrupts
    if waiting:
        print("Going on where somebody was asked.")
        result: dict[str, Any] = {"__interrupt__": waiting}
    else:
        print(f"Task: {TASK}")
        result = agent.invoke({"messages": [("user", TASK)]}, CONVERSATION)
    while question := result.get("__interrupt__"):
        for request in question[0].value["action_requests"]:
            print(f"It wants to: {request['name']} {json.dumps(request['args'])}")
        if stop:
            print("Stopped here. Run it again to answer.")
            return
        decisions = [decide(answer) for _ in question[0].value["action_requests"]]
        result = agent.invoke(Command(resume={"decisions": decisions}), CONVERSATION)
    print(f"It says: {result['messages'][-1].text}")


def decide(answer: str | None) -> dict[str, str]:
    if answer is None:
        answer = "approve" if input("Shall it? [y/N] ").strip().lower() in ("y", "yes") else "reject"
    return {"type": "approve"} if answer == "approve" else {"type": "reject", "message": "Leave the logs alone."}


def show(memory: Memory) -> None:
    """What the memory holds of it: one episode, however often it was stopped."""
    for episode in memory.export():
        print(f"\nRecorded: {episode.goal}")
        for step in episode.steps:
            what = f"{step.tool} {json.dumps(step.arguments)}" if step.kind == "tool_call" else step.text or step.error
            print(f"  {step.kind.value}: {' '.join(str(what).split())[:100]}")


def script(request: Request) -> str:
    """What a model would say: look, then ask to delete, then tell how it ended."""
    said = " ".join(message.content for message in request.messages)
    if "GB freed" in said:
        return "There is room again: 180 GB of old logs are gone."
    if "Leave the logs alone" in said:
        return "The disk is still full, and I may not delete the logs. Somebody has to add a disk."
    if "96 % used" in said:
        return '<tool_call>[{"name": "delete_logs", "arguments": {"host": "db-1", "older_than_days": 30}}]</tool_call>'
    return '<tool_call>[{"name": "disk_usage", "arguments": {"host": "db-1"}}]</tool_call>'


if __name__ == "__main__":
    main()
