"""A thousand random runs with every kind of failure: each step that happened is in the store exactly once.

Probes inside and outside of the memory's middleware note what models and tools gave back, and what of it reached the
agent: a run that is cancelled between the two has lost an answer, and the memory never saw it. Runs fail, are
cancelled, interrupted, resumed (by the same objects or by new ones, as another process would have), left alone, or go
on with another message; tools run in parallel; some models repeat the ids of their calls; the store is away now and
then.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.errors import EmptyInputError, GraphBubbleUp
from langgraph.types import Command, interrupt
from scripted_agent import Flavour, ScriptedChat, calls, episodes, run, thread

from langchain_rag_tuned_memory import RagTunedMemoryMiddleware
from rag_tuned_memory import Memories, Memory, Step, StepKind
from rag_tuned_memory.capture import EpisodeRecorder
from rag_tuned_memory.errors import StoreUnavailable

CONVERSATIONS = 250
"""For each way of running and each checkpointer, of one or two runs: about 1,500 runs in all."""
AT_ONCE = 8
USERS = ("alice", "bob", "carol")


class ModelDown(Exception):
    """A model call that fails."""


class ToolDown(Exception):
    """A tool that fails."""


class Happened:
    """What came back, by turn (a label that is in the user's message)."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked: set[str] = set()
        self.said: Counter[str] = Counter()
        self.called: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.results: dict[str, list[str]] = defaultdict(list)


class Attempts:
    """How often each thing was tried."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def next(self, name: str) -> int:
        with self.lock:
            self.counts[name] += 1
            return self.counts[name]


class Probe(AgentMiddleware[Any, Any, Any]):
    """Notes what comes back where it stands."""

    def __init__(self, place: str, happened: Happened) -> None:
        super().__init__()
        self.place = place
        self.happened = happened

    @property
    def name(self) -> str:
        return f"Probe{self.place}"

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        self.asked(request.messages)
        try:
            return self.answered(handler(request))
        except ModelDown as error:
            self.happened.errors[str(error)] += 1
            raise

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        self.asked(request.messages)
        try:
            return self.answered(await handler(request))
        except ModelDown as error:
            self.happened.errors[str(error)] += 1
            raise

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        try:
            return self.returned(request, handler(request))
        except GraphBubbleUp:
            raise
        except BaseException as error:
            self.raised(request, error)
            raise

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        try:
            return self.returned(request, await handler(request))
        except GraphBubbleUp:
            raise
        except BaseException as error:
            self.raised(request, error)
            raise

    def asked(self, messages: list[BaseMessage]) -> None:
        self.happened.asked.add(label(messages))

    def answered(self, response: Any) -> Any:
        with self.happened.lock:
            for message in response.result:
                if message.text:
                    self.happened.said[str(message.text)] += 1
                for call in message.tool_calls:
                    self.happened.called[call["args"]["what"]] += 1
        return response

    def returned(self, request: Any, message: Any) -> Any:
        with self.happened.lock:
            self.happened.results[request.tool_call["args"]["what"]].append(str(message.text))
        return message

    def raised(self, request: Any, error: BaseException) -> None:
        text = "cancelled" if isinstance(error, asyncio.CancelledError) else f"ToolDown: {error}"
        with self.happened.lock:
            self.happened.results[request.tool_call["args"]["what"]].append(text)


def label(messages: list[BaseMessage]) -> str:
    return next(str(one.text) for one in reversed(messages) if isinstance(one, HumanMessage))


def model(seed: str, attempts: Attempts) -> ScriptedChat:
    def answer(messages: list[BaseMessage]) -> AIMessage:
        turn = label(messages)
        number = attempts.next(turn)
        chance = random.Random(f"{seed}/{turn}/{number}")
        repeats = random.Random(f"{seed}/{turn}").random() < 0.3
        luck = chance.random()
        if luck < 0.12:
            raise ModelDown(f"model {turn} {number}")
        if luck < 0.65 and number < 8:
            whats = [f"{turn} {number}.{place}" for place in range(chance.randint(1, 4))]
            ids = [f"call_{place}" if repeats else what for place, what in enumerate(whats)]
            text = f"I will act: {turn} {number}" if chance.random() < 0.5 else ""
            return calls(*(("act", {"what": what}, one) for what, one in zip(whats, ids, strict=True)), text=text)
        return AIMessage(f"answer {turn} {number}")

    return ScriptedChat(answer=answer)


def fate(seed: str, what: str, attempts: Attempts) -> Callable[[], tuple[float, str]]:
    """How long a tool takes and what it gives; raises where it fails, and interrupts where somebody is to be asked."""
    attempt = attempts.next(what)
    chance = random.Random(f"{seed}/{what}/{attempt}")
    asks = random.Random(f"{seed}/{what}").random() < 0.1

    def decide() -> tuple[float, str]:
        if asks:
            return 0.0, f"{interrupt(what)} {what}"
        if chance.random() < 0.12:
            raise ToolDown(f"tool {what} {attempt}")
        return chance.choice([0.0, 0.0, 0.001, 0.005]), f"did {what} {attempt}"

    return decide


def tool(seed: str, attempts: Attempts, flavour: Flavour) -> Any:
    def act(what: str) -> str:
        """Do something."""
        seconds, text = fate(seed, what, attempts)()
        time.sleep(seconds)
        return text

    async def aact(what: str) -> str:
        """Do something."""
        decide = fate(seed, what, attempts)
        await asyncio.sleep(0)
        seconds, text = decide()
        await asyncio.sleep(seconds)
        return text

    aact.__name__ = "act"
    return aact if flavour == "async" else act


@asynccontextmanager
async def checkpoints(kind: str, flavour: Flavour, path: Path) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:
        if kind == "memory":
            yield InMemorySaver()
        elif flavour == "async":
            yield await stack.enter_async_context(AsyncSqliteSaver.from_conn_string(str(path / "c.db")))
        else:
            yield stack.enter_context(SqliteSaver.from_conn_string(str(path / "c.db")))


class Driver:
    """Runs agents at random."""

    def __init__(self, seed: str, flavour: Flavour, memories: Memories, saver: Any) -> None:
        self.seed, self.flavour, self.memories, self.saver = seed, flavour, memories, saver
        self.made, self.reached = Happened(), Happened()
        self.sent: set[str] = set()
        self.ends: Counter[str] = Counter()
        attempts = Attempts()
        self.model = model(seed, attempts)
        self.tool = tool(seed, attempts, flavour)
        self.processes: list[tuple[EpisodeRecorder, RagTunedMemoryMiddleware]] = []
        self.shared = self.process()

    def process(self) -> Any:
        """An agent of new objects, as another process would have them."""
        recorder = EpisodeRecorder(self.memories)
        own = RagTunedMemoryMiddleware(self.memories, recorder=recorder)
        self.processes.append((recorder, own))
        middleware = [Probe("Outside", self.reached), own, Probe("Inside", self.made)]
        return create_agent(self.model, [self.tool], middleware=middleware, checkpointer=self.saver)

    async def conversation(self, number: int) -> None:
        chance = random.Random(f"{self.seed}/{number}")
        user = USERS[number % len(USERS)]
        config = thread(f"{self.seed} {number}", namespace=user)
        agent = self.shared
        for turn in range(chance.randint(1, 2)):
            turn_name = f"{number}-{turn}"
            asked: Any = {"messages": [HumanMessage(turn_name, id=f"human {turn_name}")]}
            given = asked
            self.sent.add(turn_name)
            for _ in range(12):
                end = await self.attempt(agent, given, config, chance)
                self.ends[end if isinstance(end, str) else "interrupted"] += 1
                if end == "finished" or chance.random() < 0.2:
                    break  # or nobody ever goes on with it
                if chance.random() < 0.2:  # another process goes on with it
                    agent = self.process()
                given = None if isinstance(end, str) else Command(resume=end)
                if end == "lost":
                    given = asked

    async def attempt(self, agent: Any, given: Any, config: Any, chance: random.Random) -> Any:
        """How it ended: ``finished``, ``failed``, ``cancelled``, ``lost`` (there was no checkpoint yet to go on from).

        Or the answers to the interrupts that it waits for.
        """
        task = asyncio.ensure_future(run(agent, self.flavour, given, config=config))
        if self.flavour == "async" and chance.random() < 0.25:
            for _ in range(chance.randint(0, 60)):
                await asyncio.sleep(0)
            task.cancel()
        try:
            result = await task
        except (ModelDown, ToolDown):
            return "failed"
        except asyncio.CancelledError:
            return "cancelled"
        except EmptyInputError:
            return "lost"
        waiting = result.get("__interrupt__")
        return {one.id: "was told to" for one in waiting} if waiting else "finished"


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The store cannot be reached at one write in twenty."""
    plain, awaited, chance = Memory.extend, Memory.aextend, random.Random(1)
    failed: list[str] = []

    def lost() -> None:
        if chance.random() < 0.05:
            failed.append("x")
            raise StoreUnavailable("away")

    def extend(self: Memory, given: Any) -> Any:
        lost()
        return plain(self, given)

    async def aextend(self: Memory, given: Any) -> Any:
        lost()
        return await awaited(self, given)

    monkeypatch.setattr(Memory, "extend", extend)
    monkeypatch.setattr(Memory, "aextend", aextend)

    def back() -> int:
        monkeypatch.setattr(Memory, "extend", plain)
        monkeypatch.setattr(Memory, "aextend", awaited)
        return len(failed)

    return back


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("flavour", ["sync", "async"])
async def test_no_step_is_lost(memories: Memories, flavour: Flavour, kind: str, tmp_path: Path, away: Any) -> None:
    async with checkpoints(kind, flavour, tmp_path) as saver:
        driver = Driver(f"{flavour} {kind}", flavour, memories, saver)
        limit = asyncio.Semaphore(AT_ONCE)

        async def limited(number: int) -> None:
            async with limit:
                await driver.conversation(number)

        await asyncio.gather(*(limited(number) for number in range(CONVERSATIONS)))
    assert away() > 0
    for recorder, _ in driver.processes:
        kill(recorder)
    RagTunedMemoryMiddleware(memories)._episodes.recover()
    check(memories, driver)
    for _, own in driver.processes:
        own.close()
    check(memories, driver)  # what lives a little longer does no harm
    assert len(driver.sent) > CONVERSATIONS
    expected = {"finished", "failed", "interrupted"} | ({"cancelled"} if flavour == "async" else set())
    assert expected <= {end for end, count in driver.ends.items() if count > 10}, driver.ends
    assert sum(len(whats) > 1 for whats in driver.made.results.values()) > 5, "no tool was called again"


def kill(recorder: EpisodeRecorder) -> None:
    """What the end of its process does: its lock is gone, its files are not."""
    if recorder._journal._lock is not None:
        recorder._journal._lock.release()


def check(memories: Memories, driver: Driver) -> None:
    """Everything that reached the agent is stored, nothing that did not happen is, and nothing is there twice."""
    made, reached = driver.made, driver.reached
    stored = [one for user in USERS for one in episodes(memories.of(user))]
    steps = [step for one in stored for step in one.steps]
    goals = Counter(one.goal for one in stored)
    between(made.asked, goals, driver.sent)
    for one in stored:
        assert one.namespace == USERS[int(one.goal.split("-")[0]) % len(USERS)]
        assert all(one.goal in content(step) for step in one.steps if step.error != "cancelled"), "of another turn"
    assert Counter(step.text for step in steps if step.actor == "user") == goals
    said = [step.text for step in steps if step.kind is StepKind.MESSAGE and step.actor != "user"]
    between(reached.said, said, made.said)
    between(reached.called, [what(step) for step in steps if step.kind is StepKind.TOOL_CALL], made.called)
    errors = [step.error or "" for step in steps if step.kind is StepKind.OBSERVATION and step.error != "cancelled"]
    between(reached.errors, [one.removeprefix("ModelDown: ") for one in errors], made.errors)
    results: list[str] = []
    for one in stored:
        calls = {step.call_id: what(step) for step in one.steps if step.kind is StepKind.TOOL_CALL}
        for step in one.steps:
            if step.kind is StepKind.TOOL_RESULT:
                called = calls[step.call_id]
                results.append(called)
                assert (step.error or step.text) in [*made.results[called][-1:], *reached.results[called][-1:]]
    between(made.results, results, made.results)


def between(least: Iterable[str], found: Iterable[str], most: Iterable[str]) -> None:
    """Each of ``least`` is found, and nothing beyond ``most``; none twice."""
    counts = Counter(found)
    assert [one for one in least if one not in counts] == [], "lost"
    assert [one for one in counts if one not in set(most)] == [], "did not happen"
    assert [one for one, count in counts.items() if count > 1] == [], "doubled"


def content(step: Step) -> str:
    return what(step) if step.kind is StepKind.TOOL_CALL else step.text or step.error or ""


def what(step: Step) -> str:
    return str((step.arguments or {}).get("what"))
