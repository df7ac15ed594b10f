"""Agent runs made at random, with failures of models, tools and store, cancelled runs and contexts that travel.

All that must be found in the memory afterwards is noted by the agents' surroundings, not by the code under test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context
from scripted_llm import Reply, ScriptedLLM, call

from llama_index.memory.rag_tuned import RagTunedMemory, TrajectoryRecorder
from llama_index.memory.rag_tuned.messages import text_of
from rag_tuned_memory import Memories
from rag_tuned_memory.errors import StoreUnavailable


class UnreliableStore:
    """A store whose calls fail now and then, before or after they did what they should."""

    def __init__(self, store: Any, dice: random.Random) -> None:
        self._store = store
        self._dice = dice
        self.share = 0.0
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name not in ("put", "get", "candidates", "candidates_at", "headings", "embedder"):
            return real

        async def call(*args: Any, **kwargs: Any) -> Any:
            before = self._dice.random() < self.share / 2
            if not before:
                result = await real(*args, **kwargs)
            if before or self._dice.random() < self.share / 2:
                self.failures += 1
                raise StoreUnavailable("the store is down")
            return result

        return call


class Watched(RagTunedMemory):
    """Notes what it is given before it does anything with it."""

    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        PUT[self.namespace] += Counter(text for message in messages if (text := text_of(message)))
        await super().aput_messages(messages)


PUT: dict[str, Counter[str]] = {}
"""What each user's memories were given."""


@dataclass
class Seen:
    """What happened in one run, as its model and its tools saw it."""

    question: str
    texts: list[str] = field(default_factory=list)
    ended: str = "cancelled"


@dataclass
class User:
    """Somebody whose agent runs now and then."""

    name: str
    dice: random.Random
    memories: Memories
    recorder: TrajectoryRecorder
    seen: list[Seen] = field(default_factory=list)
    session: Watched | None = None
    context: dict[str, Any] | None = None

    async def work(self, runs: int, store: UnreliableStore) -> None:
        """Run the agent so often."""
        PUT[self.name] = Counter()
        for number in range(runs):
            store.share = self.dice.choice([0.0, 0.0, 0.0, 0.3])
            await self._run(f"{self.name} asks {number}.", Seen(f"{self.name} asks {number}."))

    async def _run(self, question: str, seen: Seen) -> None:
        self.seen.append(seen)
        made = self._agent(seen)
        arguments = self._arguments(made, question)
        with self.recorder.recording(f"{self.name}-runs", session_id="s1"):
            handler = made.run(**arguments)
        limit = self.dice.choice([None, None, None, None, self.dice.uniform(0, 0.05)])
        with contextlib.suppress(Exception):
            try:
                await asyncio.wait_for(asyncio.shield(handler._result_task), limit)
                seen.ended = "answered"
            except TimeoutError:
                await handler.cancel_run()
            except RuntimeError:
                seen.ended = "failed"
        self.context = None
        if "ctx" in arguments and self.dice.random() < 0.7:
            state = json.loads(json.dumps(handler.ctx.to_dict()))
            # one of a run that was stopped would go on with that run, and not begin another
            self.context = None if state["is_running"] else state

    def _arguments(self, made: Any, question: str) -> dict[str, Any]:
        """A new session, the last one, the last one restored, or the context of the last run."""
        way = self.dice.random()
        if self.context is not None and way < 0.5:
            return {"user_msg": question, "ctx": Context.from_dict(made, self.context)}
        if self.session is None or way < 0.6:
            self.session = Watched(self.memories, namespace=self.name)
        elif way < 0.8:
            self.session = Watched.from_dict(json.loads(json.dumps(self.session.to_dict())))
        arguments: dict[str, Any] = {"user_msg": question, "memory": self.session}
        return {**arguments, "ctx": Context(made)} if self.dice.random() < 0.5 else arguments

    def _agent(self, seen: Seen) -> Any:
        kind = self.dice.choice(["function", "stream", "react", "workflow"])
        tools = [FunctionTool.from_defaults(async_fn=self._tool(seen), name="look", description="Look at a host.")]
        if kind == "react":
            return ReActAgent(tools=tools, llm=self._react_llm(seen))
        llm = self._llm(seen, handoff=kind == "workflow")
        if kind != "workflow":
            return FunctionAgent(tools=tools, llm=llm, streaming=kind == "stream")
        first = FunctionAgent(name="first", description="First.", tools=tools, llm=llm, can_handoff_to=["second"])
        second = FunctionAgent(name="second", description="Second.", tools=tools, llm=self._llm(seen))
        return AgentWorkflow(agents=[first, second], root_agent="first")

    def _tool(self, seen: Seen) -> Callable[..., Awaitable[str]]:
        async def look(host: str) -> str:
            """Look at a host."""
            await asyncio.sleep(self.dice.choice([0, 0, 0.003]))
            text = f"{host} is looked at ({seen.question})"
            seen.texts.append(text)
            if self.dice.random() < 0.2:
                raise ConnectionError(text)
            return text

        return look

    def _llm(self, seen: Seen, *, handoff: bool = False) -> ScriptedLLM:
        """Calls tools for a while, with good ids and bad ones; then answers, hands off or fails."""
        steps = self.dice.choice([0, 1, 1, 2, 3])
        replies: list[Reply] = []
        for step in range(steps):
            ids = self.dice.choice([lambda n, step=step: f"c{step}-{n}", lambda n: "look", lambda n: None])
            count = self.dice.choice([1, 1, 2, 3])
            replies.append([call("look", ids(n), host=f"h{step}-{n}-{handoff}") for n in range(count)])
        replies.append(self._last(seen, handoff=handoff))
        return self._noted(seen, replies)

    def _last(self, seen: Seen, *, handoff: bool) -> Reply:
        if self.dice.random() < 0.15:
            return RuntimeError(f"no model for: {seen.question}")
        if handoff and self.dice.random() < 0.7:
            return [call("handoff", "over", to_agent="second", reason="its turn")]
        return f"answer to: {seen.question}"

    def _react_llm(self, seen: Seen) -> ScriptedLLM:
        looks = [
            f'Thought: I look.\nAction: look\nAction Input: {{"host": "r{step}"}}'
            for step in range(self.dice.choice([0, 1, 2]))
        ]
        last = self._last(seen, handoff=False)
        return self._noted(seen, [*looks, f"Thought: I know.\nAnswer: {last}" if isinstance(last, str) else last])

    def _noted(self, seen: Seen, replies: list[Reply]) -> ScriptedLLM:
        """A model that notes its answer when it gives it."""

        def reply(_: Sequence[ChatMessage]) -> Reply:
            given = replies.pop(0)
            if isinstance(given, str) and "answer to" in given:
                seen.texts.append(f"answer to: {seen.question}")
            return given

        return ScriptedLLM(reply, wait=self.dice.choice([0, 0, 0.003]))
