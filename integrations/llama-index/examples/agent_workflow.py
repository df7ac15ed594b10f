"""Two agents of an AgentWorkflow that share a namespace, and a recorder that keeps what each of them did.

    python agent_workflow.py             no weights: a hashing embedder, and models that follow a few rules
    python agent_workflow.py --real      what RTM_MODEL and RTM_BACKEND name (the default is too small to call tools)

One agent finds out what is wrong and hands over to the other, which puts it right. The recorder sees every step of
both, also of runs that fail: so the memory itself records nothing here (``record=False``).
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
from pathlib import Path

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent

from llama_index.memory.rag_tuned import RagTunedLLM, RagTunedMemory, TrajectoryRecorder
from rag_tuned_memory import Memory, Settings
from rag_tuned_memory.serving.base import Request
from rag_tuned_memory.serving.scripted import ScriptedBackend

INCIDENTS = {"INC-1": "db-1 is slow.", "INC-2": "db-2 is slow. What was it the last time?"}


def disk(host: str) -> str:
    """How full the disk of a host is."""
    return f"the disk of {host} is full: old logs take 80 %"


def remove_logs(host: str) -> str:
    """Remove old logs of a host."""
    return f"the logs of {host} are removed"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="ask the model that the settings (RTM_*) name")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, open_memory(Path(home), real=given.real) as memory:
        async with TrajectoryRecorder(memory) as recorder:
            for incident, question in INCIDENTS.items():
                await handle(memory, recorder, incident, question)
        show(memory)


async def handle(memory: Memory, recorder: TrajectoryRecorder, incident: str, question: str) -> None:
    session = RagTunedMemory(memory, session_id=incident, record=False)
    print(f"? {question}")
    with recorder.recording(session_id=incident):
        print(f"  > {await make_workflow(memory).run(user_msg=question, memory=session)}")
    await recorder.aflush()


def make_workflow(memory: Memory) -> AgentWorkflow:
    llm = RagTunedLLM(memory, model="base")
    finder = FunctionAgent(
        name="finder",
        description="Finds out what is wrong.",
        system_prompt="You are the finder.",
        tools=[disk],
        llm=llm,
        can_handoff_to=["fixer"],
    )
    fixer = FunctionAgent(
        name="fixer",
        description="Puts it right.",
        system_prompt="You are the fixer.",
        tools=[remove_logs],
        llm=llm,
    )
    return AgentWorkflow(agents=[finder, fixer], root_agent="finder")


def show(memory: Memory) -> None:
    for episode in memory.export():
        print(f"\n{episode.source_id.partition('/')[0] if episode.source_id else ''}: {episode.goal}")
        for step in episode.steps:
            print(f"  {step.actor or step.tool}: {step.text or f'{step.tool} {step.arguments}'}")


def open_memory(home: Path, *, real: bool) -> Memory:
    if real:
        return Memory("operations", settings=Settings(home=home))
    settings = Settings(home=home, embedder="hashing")
    return Memory("operations", settings=settings, backend=ScriptedBackend(follow_rules))


def follow_rules(request: Request) -> str:
    """What two models might do: look, hand over, put right; or hand over at once, where the reason is known."""
    told = [message.content for message in request.messages]
    host = re.findall(r"db-\d", told[-1])[-1]
    if "You are the fixer" in told[0]:
        if "are removed" in told[-1]:
            return f"{host} was slow because old logs had filled its disk. They are removed."
        return f'<tool_call>[{{"name": "remove_logs", "arguments": {{"host": "{host}"}}}}]</tool_call>'
    if "old logs" in told[-1]:
        handoff = f'{{"to_agent": "fixer", "reason": "old logs fill the disk of {host}"}}'
        return f'<tool_call>[{{"name": "handoff", "arguments": {handoff}}}]</tool_call>'
    return f'<tool_call>[{{"name": "disk", "arguments": {{"host": "{host}"}}}}]</tool_call>'


if __name__ == "__main__":
    asyncio.run(main())
