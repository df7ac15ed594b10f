"""``RagTunedDemonstrations``: whole runs that went well, shown to an agent as turns of its conversation."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from langchain.agents.middleware.types import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

from langchain_rag_tuned_memory._failing import FailOpen, OnError
from langchain_rag_tuned_memory._identity import Identity, NamespaceOf
from langchain_rag_tuned_memory._namespaces import CONFIG_KEY
from langchain_rag_tuned_memory._plans import Call, Plan, aask, ask
from langchain_rag_tuned_memory._recording import text_of
from langchain_rag_tuned_memory._turns import last_human
from rag_tuned_memory import Filter, Memories, Memory, Recollection, Trajectory
from rag_tuned_memory.distil.acting import RecordedTurn, turns_of
from rag_tuned_memory.errors import InvalidInput, TrajectoryNotFound
from rag_tuned_memory.recall.budget import estimate_tokens
from rag_tuned_memory.serving import tools

_PASSAGES, _PASSAGE_TOKENS = 30, 4000
"""So much is looked through for the runs that it belongs to."""
_QUERY_CHARACTERS = 2000

_log = logging.getLogger(__name__)
Demonstration = list[AnyMessage]


class RagTunedDemonstrations(AgentMiddleware[AgentState, Any, Any]):
    """Shows the model, before its own conversation, how such things were done: runs of the memory that went well.

    Trajectories as exemplars (Zheng et al. 2023, arXiv 2306.07863): small models that hardly read what is recalled as
    text go on in the manner of turns that they are shown. The runs are chosen at each model call anew, for what the
    user asked and the last tool said: at most ``k`` of them and ``token_budget`` estimated tokens, the best one last.
    Runs in which a call failed, or with tools that the agent does not have, are left out. Nothing of it is recorded.

    The turns stand unfenced, as the agent's own. Give ``where`` to keep to sources whose texts you trust.
    ``namespace``, ``identity_key`` and ``on_error`` are as in ``RagTunedMemoryMiddleware``, beside which it may stand.

    Raises:
        InvalidInput, InvalidNamespace: an argument is wrong; says which.
    """

    def __init__(
        self,
        memory: Memory | Memories,
        *,
        namespace: str | NamespaceOf | None = None,
        identity_key: str = CONFIG_KEY,
        k: int = 3,
        token_budget: int = 2000,
        where: Filter | None = None,
        on_error: OnError = "log",
    ) -> None:
        super().__init__()
        for name, value in (("k", k), ("token_budget", token_budget)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidInput(f"must be a whole number from 1, is {value!r}", place=name)
        self._identity = Identity(memory, namespace, key=identity_key)
        self._k, self._token_budget = k, token_budget
        self._where = (where or Filter()).model_copy(update={"success": True})
        self._fail_open = FailOpen(on_error, _log)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Put the runs before the conversation of this call."""
        memory, shown = self._memory(request), []
        with self._fail_open("find runs to show"):
            shown = ask(memory, self._plan(request))
        return handler(_preceded(request, shown))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """As ``wrap_model_call``, awaited."""
        memory, shown = self._memory(request), []
        with self._fail_open("find runs to show"):
            shown = await aask(memory, self._plan(request))
        return await handler(_preceded(request, shown))

    def _memory(self, request: ModelRequest[Any]) -> Memory:
        return self._identity.memory(request.runtime, getattr(request.runtime, "config", None))

    def _plan(self, request: ModelRequest[Any]) -> Plan[list[Demonstration]]:
        """The runs to show, best first."""
        query = _query(request.messages)
        if not query:
            return []
        limits = {"k": _PASSAGES, "token_budget": _PASSAGE_TOKENS, "where": self._where}
        found: Recollection = yield Call("recall", {"query": query, **limits})
        names = {tool.name for tool in request.tools if not isinstance(tool, dict)}
        before = request.messages[: last_human(request.messages)]
        said = {text_of(one) for one in before if isinstance(one, HumanMessage)}
        shown: list[Demonstration] = []
        left = self._token_budget
        for trajectory_id in dict.fromkeys(one.trajectory_id for one in found.results):
            try:
                trajectory: Trajectory = yield Call("get", {"trajectory_id": trajectory_id})
            except TrajectoryNotFound:  # forgotten meanwhile
                continue
            run = _demonstration(trajectory, names)
            cost = sum(estimate_tokens([_written(one) for one in run]))
            # an earlier turn of this conversation stands in it already
            if not run or cost > left or text_of(run[0]) in said:
                continue
            shown.append(run)
            left -= cost
            if len(shown) == self._k:
                break
        return shown


def _written(message: AnyMessage) -> str:
    """About what a model reads of it."""
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    return tools.called(text_of(message), [tools.Call(name=one["name"], arguments=one["args"]) for one in calls])


def _query(messages: Sequence[AnyMessage]) -> str:
    """What the user asked last, and before it what a tool has said since."""
    place = last_human(messages)
    asked = text_of(messages[place]) if place >= 0 else ""
    told = text_of(messages[-1]) if messages and isinstance(messages[-1], ToolMessage) else ""
    return "\n".join(text[:_QUERY_CHARACTERS] for text in (told.strip(), asked.strip()) if text)


def _preceded(request: ModelRequest[Any], shown: Sequence[Demonstration]) -> ModelRequest[Any]:
    """The call with the runs before its messages, the best one next to them."""
    if not shown:
        return request
    return request.override(messages=[*(one for run in reversed(shown) for one in run), *request.messages])


def _demonstration(trajectory: Trajectory, names: set[str]) -> Demonstration:
    """A run as messages; empty where it is no example: calls that failed, none at all, unknown tools, no result."""
    if any(step.error for step in trajectory.steps):
        return []
    turns = list(turns_of(trajectory))
    called = [call.name for turn in turns for call in turn.calls]
    if not called or not names.issuperset(called) or turns[0].role != "user":
        return []
    answered = {turn.call_id for turn in turns if turn.role == "tool"} - {None}
    if not all(answered.issuperset(turn.call_ids) for turn in turns):
        return []
    return list(_messages(turns, trajectory.id[:8]))


def _messages(turns: Sequence[RecordedTurn], prefix: str) -> Iterator[AnyMessage]:
    for turn in turns:
        if turn.role == "user":
            yield HumanMessage(turn.text)
        elif turn.role == "tool":
            yield ToolMessage(turn.text, tool_call_id=f"{prefix}-{turn.call_id}", name=turn.name)
        else:
            ids = [f"{prefix}-{one}" for one in turn.call_ids]
            calls = [
                {"name": call.name, "args": call.arguments, "id": own}
                for call, own in zip(turn.calls, ids, strict=True)
            ]
            yield AIMessage(turn.text, tool_calls=calls)
