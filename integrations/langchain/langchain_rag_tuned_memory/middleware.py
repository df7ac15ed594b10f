"""``RagTunedMemoryMiddleware``: memory for ``create_agent``."""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NotRequired
from uuid import uuid4

from langchain.agents.middleware.types import (
    AgentMiddleware,
    AgentState,
    ModelRequest,
    ModelResponse,
    PrivateStateAttr,
    ToolCallRequest,
)
from langchain_core.messages import BaseMessage, ToolMessage
from langgraph.config import get_config
from langgraph.types import Command

from langchain_rag_tuned_memory._episodes import Episodes, episode_id
from langchain_rag_tuned_memory._equipment import Equipment
from langchain_rag_tuned_memory._failing import FailOpen, OnError
from langchain_rag_tuned_memory._identity import Identity, NamespaceOf
from langchain_rag_tuned_memory._injection import with_block
from langchain_rag_tuned_memory._namespaces import CONFIG_KEY
from langchain_rag_tuned_memory._plans import Plan, aask, ask
from langchain_rag_tuned_memory._recalling import NOTHING, Mode, Recalling, Remembered
from langchain_rag_tuned_memory._recording import tool_messages
from langchain_rag_tuned_memory._runs import ENDED, PAUSED, Ending, Run
from langchain_rag_tuned_memory._turns import Turn, begun, last_human, present
from langchain_rag_tuned_memory.tools import CHANGING, memory_tools
from rag_tuned_memory import Filter, Memories, Memory, Outcome
from rag_tuned_memory.capture import EpisodeRecorder
from rag_tuned_memory.errors import InvalidInput

try:
    from langgraph.types import TracePolicy, omit_payload

    _NO_PAYLOAD: Any = TracePolicy(process_inputs=omit_payload)
except ImportError:  # an older langgraph traces hooks in its own way
    _NO_PAYLOAD = None

_log = logging.getLogger(__name__)
ToolResult = ToolMessage | Command[Any]


class MemoryState(AgentState[Any]):
    """The agent's state with the turn that is under way; neither input nor output."""

    rag_tuned_memory: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]


@dataclass(frozen=True, slots=True)
class _Visit:
    """A hook in a turn of somebody's run."""

    memory: Memory
    turn: Turn
    run: Run
    question: BaseMessage | None

    @property
    def asked(self) -> str:
        """What a recall is kept under: the human message that it is for."""
        return (self.question.id if self.question else self.turn.last) or ""


class RagTunedMemoryMiddleware(AgentMiddleware[MemoryState, Any, Any]):
    """The agent remembers what it did, and may use the model that learned from it.

        agent = create_agent(model, tools, middleware=[RagTunedMemoryMiddleware(memory)])

    At the first model call after a human message it recalls what is known, and puts it, fenced as untrusted data, at
    the end of the system message of each call until the answer. It records the run as an episode while it happens:
    messages, tool calls and their results, errors and cancellations. An interrupt is a pause: the run that is resumed,
    also by another process, goes on with the same episode.

    ``memory`` is of one namespace, or ``Memories``; for these ``namespace`` or the run says whose it is (see
    ``Identity``). ``mode`` is ``recall`` (recalled text), ``record`` (nothing is recalled), ``advisor`` (also what the
    memory's tuned model answers) or ``driver`` (the agent's model is served with the memory's adapters: each call gets
    ``model=<adapter>`` where the memory's routing says so). ``k`` passages and ``token_budget`` tokens at most are put
    into the prompt; ``where`` restricts what is recalled. ``outcome`` is given the state at the end and says how the
    run went. ``tools`` adds ``memory_tools``, all or those named. ``on_error="raise"`` lets errors of the memory end
    the run; by default they are logged and the agent goes on without it. ``name`` tells two memories of one agent
    apart. ``recorder`` may be shared; an own one is closed by ``close``, or when the program ends. What is open when
    the object is collected lies on disk, and the next recorder of the same home stores it.

    Raises:
        InvalidInput, InvalidNamespace: an argument is wrong; says which.
    """

    state_schema = MemoryState
    trace_policy = _NO_PAYLOAD

    def __init__(
        self,
        memory: Memory | Memories,
        *,
        namespace: str | NamespaceOf | None = None,
        identity_key: str = CONFIG_KEY,
        mode: Mode | str = Mode.RECALL,
        k: int = 6,
        token_budget: int = 800,
        where: Filter | None = None,
        record: bool = True,
        outcome: Callable[[Mapping[str, Any]], Outcome | None] | None = None,
        tools: bool | Sequence[str] = False,
        on_error: OnError = "log",
        recorder: EpisodeRecorder | None = None,
        name: str = "RagTunedMemoryMiddleware",
    ) -> None:
        super().__init__()
        self._name = name
        self._identity = Identity(memory, namespace, key=identity_key)
        self._recalling = Recalling(_mode(mode), k, token_budget, where or Filter())
        self._fail_open = FailOpen(on_error, _log)
        self._outcome = outcome
        self._own_recorder = EpisodeRecorder(memory) if record and recorder is None else None
        self._episodes = Episodes((recorder or self._own_recorder) if record else None, self._fail_open)
        self._recovered = False
        self._at_exit = functools.partial(_close_at_exit, weakref.ref(self))
        atexit.register(self._at_exit)
        # an object that is collected leaves what is open on disk: storing would block whatever thread collects it
        weakref.finalize(self, atexit.unregister, self._at_exit).atexit = False
        names = None if tools is True else tools or ()
        self.tools = memory_tools(memory, namespace=namespace, identity_key=identity_key, names=names)

    @property
    def name(self) -> str:
        """The name that was given; unique in an agent."""
        return self._name

    def close(self) -> None:
        """Store the runs that are still open, as paused; closing twice is allowed."""
        atexit.unregister(self._at_exit)
        self._episodes.close()
        if self._own_recorder is not None:
            self._own_recorder.close()

    # hooks: each has an awaited twin, and both only carry out what the methods below decide

    def before_agent(self, state: MemoryState, runtime: Any) -> dict[str, Any]:
        """Begin a turn. Raises InvalidNamespace where nobody is named."""
        update, stale = self._begin(state, runtime)
        if not self._recovered:
            self._recovered = True
            self._episodes.recover()
        for run in stale:
            if not self._episodes.store(run, run.owed or PAUSED):
                break
        return update

    async def abefore_agent(self, state: MemoryState, runtime: Any) -> dict[str, Any]:
        """As ``before_agent``, awaited."""
        update, stale = self._begin(state, runtime)
        if not self._recovered:
            self._recovered = True
            await asyncio.to_thread(self._episodes.recover)
        for run in stale:
            if not await self._episodes.astore(run, run.owed or PAUSED):
                break
        return update

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Put what is recalled into the call, and record its answer."""
        visit = self._visit(request.state, request.runtime)
        visit.run.entered(goes_on=True)
        try:
            with self._fail_open("recall"):
                visit.run.remembered[visit.asked] = ask(visit.memory, self._plan(visit))
            response = self._answered(visit, handler(_equipped(request, visit)))
        except BaseException as error:
            self._episodes.store(visit.run, visit.run.left(self._episodes.model_failed(visit.run, error)), always=True)
            raise
        self._episodes.store(visit.run, visit.run.left())
        return response

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """As ``wrap_model_call``, awaited."""
        visit = self._visit(request.state, request.runtime)
        visit.run.entered(goes_on=True)
        try:
            with self._fail_open("recall"):
                visit.run.remembered[visit.asked] = await aask(visit.memory, self._plan(visit))
            response = self._answered(visit, await handler(_equipped(request, visit)))
        except BaseException as error:
            ending = visit.run.left(self._episodes.model_failed(visit.run, error))
            await self._episodes.astore(visit.run, ending, always=True)
            raise
        await self._episodes.astore(visit.run, visit.run.left())
        return response

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolResult]) -> ToolResult:
        """Record the call, and its result or error."""
        visit = self._visit(request.state, request.runtime)
        visit.run.entered()
        try:
            self._called(visit, request)
            result = self._returned(visit, request, handler(request))
        except BaseException as error:
            self._episodes.store(visit.run, visit.run.left(self._raised(visit, request, error)), always=True)
            raise
        self._episodes.store(visit.run, visit.run.left())
        return result

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolResult]]
    ) -> ToolResult:
        """As ``wrap_tool_call``, awaited."""
        visit = self._visit(request.state, request.runtime)
        visit.run.entered()
        try:
            self._called(visit, request)
            result = self._returned(visit, request, await handler(request))
        except BaseException as error:
            ending = visit.run.left(self._raised(visit, request, error))
            await self._episodes.astore(visit.run, ending, always=True)
            raise
        await self._episodes.astore(visit.run, visit.run.left())
        return result

    def after_agent(self, state: MemoryState, runtime: Any) -> None:
        """Store the episode; when this returns, it can be recalled."""
        run = self._visit(state, runtime).run
        self._episodes.store(run, self._ended(state))

    async def aafter_agent(self, state: MemoryState, runtime: Any) -> None:
        """As ``after_agent``, awaited."""
        run = self._visit(state, runtime).run
        await self._episodes.astore(run, self._ended(state))

    def _begin(self, state: Mapping[str, Any], runtime: Any) -> tuple[dict[str, Any], list[Run]]:
        memory = self._identity.memory(runtime)
        thread = _thread(runtime)
        turn = begun(state, thread)
        stale = self._episodes.runs.left_alone(memory.namespace, thread, turn.source_id)
        return {"rag_tuned_memory": turn.to_state()}, stale

    def _visit(self, state: Any, runtime: Any) -> _Visit:
        memory = self._identity.memory(runtime, getattr(runtime, "config", None))
        thread = _thread(runtime)
        turn, messages = present(state, thread)
        run = self._episodes.follow(memory.namespace, thread, turn, messages)
        place = last_human(messages)
        return _Visit(memory, turn, run, messages[place] if place >= 0 else None)

    def _plan(self, visit: _Visit) -> Plan[Remembered]:
        known: Remembered | None = visit.run.remembered.get(visit.asked)
        if known is not None and not known.tuned:
            return known
        query = str(visit.question.text) if visit.question else ""
        episode = episode_id(visit.memory.namespace, visit.turn)
        if known is None:
            return (yield from self._recalling.plan(query, episode, self._fail_open))
        return (yield from self._recalling.again(known, query, episode, self._fail_open))

    def _answered(self, visit: _Visit, response: ModelResponse[Any]) -> ModelResponse[Any]:
        response = _identified(response)
        self._episodes.observe(visit.run, response.result)
        return response

    def _called(self, visit: _Visit, request: ToolCallRequest) -> None:
        if visit.run.transcript is not None:
            call = request.tool_call
            with self._fail_open("record a tool call"):
                visit.run.transcript.called(call["name"], call["args"], _call_id(request))

    def _returned(self, visit: _Visit, request: ToolCallRequest, result: ToolResult) -> ToolResult:
        name = request.tool_call["name"]
        if name in CHANGING:
            visit.run.remembered.clear()
        if visit.run.transcript is not None:
            with self._fail_open("record a tool's result"):
                visit.run.transcript.returned(name, _call_id(request), tool_messages(result))
        return result

    def _raised(self, visit: _Visit, request: ToolCallRequest, error: BaseException) -> Ending:
        return self._episodes.tool_failed(visit.run, request.tool_call["name"], _call_id(request), error)

    def _ended(self, state: Mapping[str, Any]) -> Ending:
        outcome = None
        if self._outcome is not None:
            with self._fail_open("say how a run went"):
                outcome = self._outcome(state)
        return replace(ENDED, outcome=outcome or Outcome())


def _mode(mode: Mode | str) -> Mode:
    try:
        return Mode(mode)
    except ValueError:
        raise InvalidInput(
            f"no mode is named {mode!r}", place="mode", remedy=f"Allowed are {', '.join(Mode)}."
        ) from None


def _close_at_exit(reference: weakref.ref[RagTunedMemoryMiddleware]) -> None:
    middleware = reference()
    try:
        if middleware is not None:
            middleware.close()
    except Exception as error:
        _log.warning("open episodes were not stored, and wait on disk for the next recorder: %s", error)


def _thread(runtime: Any) -> str | None:
    """The conversation's id, None where there is none to go back to."""
    known = getattr(getattr(runtime, "execution_info", None), "thread_id", None)
    if known is None:
        config = getattr(runtime, "config", None)
        try:
            config = get_config() if config is None else config
        except RuntimeError:
            return None
        known = (config.get("configurable") or {}).get("thread_id")
    return None if known is None else str(known)


def _equipped(request: ModelRequest[Any], visit: _Visit) -> ModelRequest[Any]:
    """The call with what is remembered in it; what it came with is kept for the episode."""
    visit.run.equipment = Equipment(request.tools, request.system_message)
    said: Remembered = visit.run.remembered.get(visit.asked, NOTHING)
    if said.text:
        request = request.override(system_message=with_block(request.system_message, said.text))
    if said.adapter and said.tuned:
        request = request.override(model_settings={**request.model_settings, "model": said.adapter})
    return request


def _identified(response: ModelResponse[Any]) -> ModelResponse[Any]:
    """Every message with an id, which the state would give it anyway, only later."""
    if all(message.id for message in response.result):
        return response
    named = [one if one.id else one.model_copy(update={"id": str(uuid4())}) for one in response.result]
    return replace(response, result=named)


def _call_id(request: ToolCallRequest) -> str:
    return str(request.tool_call["id"] or request.tool_call["name"])
