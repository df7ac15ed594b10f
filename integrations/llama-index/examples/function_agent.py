"""A FunctionAgent that remembers what an earlier session of it did.

    python function_agent.py             no weights: a hashing embedder, and a model that follows a few rules
    python function_agent.py --real      what RTM_MODEL and RTM_BACKEND name (the default is too small to call tools)

On Monday the agent finds out why an order is late. On Tuesday another one is: the memory shows what helped, and the
agent need not look for the reason again.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
from pathlib import Path

from llama_index.core.agent.workflow import FunctionAgent, ToolCall

from llama_index.memory.rag_tuned import RagTunedLLM, RagTunedMemory
from rag_tuned_memory import Memory, Settings
from rag_tuned_memory.serving.base import Request
from rag_tuned_memory.serving.scripted import ScriptedBackend

DAYS = {"monday": "Order 17 is late. Please see to it.", "tuesday": "Order 52 is late too. Please see to it."}


def tracking(order: int) -> str:
    """Where an order is."""
    return f"order {order} is held by customs: the invoice is missing"


def send_invoice(order: int) -> str:
    """Send the invoice of an order to customs."""
    return f"customs has the invoice of order {order} and let it go"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="ask the model that the settings (RTM_*) name")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, open_memory(Path(home), real=given.real) as memory:
        agent = FunctionAgent(tools=[tracking, send_invoice], llm=RagTunedLLM(memory, model="base"))
        for day, question in DAYS.items():
            await ask(agent, RagTunedMemory(memory, session_id=day), question)


async def ask(agent: FunctionAgent, memory: RagTunedMemory, question: str) -> None:
    print(f"\n? {question}")
    handler = agent.run(user_msg=question, memory=memory)
    async for event in handler.stream_events():
        if isinstance(event, ToolCall):
            print(f"  {event.tool_name} {event.tool_kwargs}")
    print(f"  > {await handler}")


def open_memory(home: Path, *, real: bool) -> Memory:
    if real:
        return Memory("shipping", settings=Settings(home=home))
    settings = Settings(home=home, embedder="hashing")
    return Memory("shipping", settings=settings, backend=ScriptedBackend(clerk))


def clerk(request: Request) -> str:
    """What a model might do: look first, unless it is shown what helped before."""
    *_, newest = request.messages
    order = re.findall(r"[Oo]rder (\d+)", newest.content)[-1]
    if "let it go" in newest.content and "<tool_response>" in newest.content:
        return f"Customs held order {order} because its invoice was missing. I sent it, and they let the order go."
    if "invoice" in newest.content:
        return f'<tool_call>[{{"name": "send_invoice", "arguments": {{"order": {order}}}}}]</tool_call>'
    return f'<tool_call>[{{"name": "tracking", "arguments": {{"order": {order}}}}}]</tool_call>'


if __name__ == "__main__":
    asyncio.run(main())
