"""Tools with which an agent uses the memory by itself, with or without the middleware."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langgraph.prebuilt import ToolRuntime
from langgraph.types import interrupt
from pydantic import Field

from langchain_rag_tuned_memory._identity import Identity, NamespaceOf
from langchain_rag_tuned_memory._namespaces import CONFIG_KEY
from langchain_rag_tuned_memory._plans import Call, Plan, aask, ask
from rag_tuned_memory import Filter, ForgetReceipt, Memories, Memory, Recollection, RecordReceipt, Trajectory
from rag_tuned_memory.capture import steps
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace, RagTunedMemoryError, TrajectoryNotFound
from rag_tuned_memory.recall.prompt import assemble

NAMES = ("recall_memory", "remember", "forget_memory", "memory_feedback")
CHANGING = frozenset({"remember", "forget_memory", "memory_feedback"})
"""Those after which a recall may find something else."""

_YES = frozenset({"yes", "y", "true", "ok", "approve", "approved", "confirm", "confirmed"})
_TOKEN_BUDGET = 1200
_NO_RUNTIME: Any = None
"""A tool that is called outside of an agent has none. ``ToolRuntime | None`` would be shown to the model."""

Query = Annotated[str, Field(description="What to look for, in words or names that would occur in it.")]
Few = Annotated[int, Field(description="How many passages at most.", ge=1, le=50)]
Text = Annotated[str, Field(description="What to remember: one fact or lesson, understandable by itself.")]
Ids = Annotated[list[str], Field(description="Ids of episodes, as recall_memory gives them.")]
Id = Annotated[str, Field(description="The id of an episode, as recall_memory gives it.")]
Opinion = Annotated[str, Field(description="What was good or bad about it.")]
Success = Annotated[bool | None, Field(description="Whether it went well, where that is known.")]


def memory_tools(
    memory: Memory | Memories,
    *,
    namespace: str | NamespaceOf | None = None,
    identity_key: str = CONFIG_KEY,
    names: Sequence[str] | None = None,
) -> list[BaseTool]:
    """``recall_memory``, ``remember``, ``forget_memory`` and ``memory_feedback``, or those of them that are named.

    Whose memory they use is found as in the middleware, see ``Identity``; the model cannot choose it.
    ``forget_memory`` interrupts the run and forgets only when the answer confirms it: ``Command(resume=True)``, or
    ``"yes"``, or ``{"confirm": True}``. An agent needs a checkpointer for that. What the memory cannot do is told to
    the model as the tool's error; a run that does not say whose memory it uses ends with InvalidNamespace.

    Raises:
        InvalidInput: no tool has such a name.
    """
    chosen = NAMES if names is None else tuple(names)
    if unknown := [name for name in chosen if name not in NAMES]:
        raise InvalidInput(
            f"no memory tool is named {', '.join(map(repr, unknown))}",
            place="tools",
            remedy=f"Allowed are {', '.join(NAMES)}.",
        )
    identity = Identity(memory, namespace, key=identity_key)
    makers: dict[str, Callable[[Identity], BaseTool]] = {
        "recall_memory": _recall_memory,
        "remember": _remember,
        "forget_memory": _forget_memory,
        "memory_feedback": _memory_feedback,
    }
    return [makers[name](identity) for name in dict.fromkeys(chosen)]


def _recall_memory(identity: Identity) -> BaseTool:
    def recall_memory(query: Query, k: Few = 6, runtime: ToolRuntime[Any, Any] = _NO_RUNTIME) -> str:
        """Search what was done, said and learned in earlier runs. Each episode is given with its id."""
        return _run(identity, runtime, _recalled(query, k))

    async def arecall_memory(query: Query, k: Few = 6, runtime: ToolRuntime[Any, Any] = _NO_RUNTIME) -> str:
        return await _arun(identity, runtime, _recalled(query, k))

    return _tool(recall_memory, arecall_memory)


def _remember(identity: Identity) -> BaseTool:
    def remember(text: Text, runtime: ToolRuntime[Any, Any] = _NO_RUNTIME) -> str:
        """Keep a fact, a preference or a lesson for later runs."""
        return _run(identity, runtime, _remembered(text))

    async def aremember(text: Text, runtime: ToolRuntime[Any, Any] = _NO_RUNTIME) -> str:
        return await _arun(identity, runtime, _remembered(text))

    return _tool(remember, aremember)


def _forget_memory(identity: Identity) -> BaseTool:
    def forget_memory(episode_ids: Ids, runtime: ToolRuntime[Any, Any] = _NO_RUNTIME) -> str:
        """Delete episodes from the memory for good. Somebody is asked to confirm it first."""
        return _run(identity, runtime, _forgotten(episode_ids))

    async def aforget_memory(episode_ids: Ids, runtime: ToolRuntime[Any, Any] = _NO_RUNTIME) -> str:
        return await _arun(identity, runtime, _forgotten(episode_ids))

    return _tool(forget_memory, aforget_memory)


def _memory_feedback(identity: Identity) -> BaseTool:
    def memory_feedback(
        episode_id: Id, text: Opinion, success: Success = None, runtime: ToolRuntime[Any, Any] = _NO_RUNTIME
    ) -> str:
        """Say what was good or bad about an earlier episode, so that later runs know."""
        return _run(identity, runtime, _fed_back(episode_id, text, success))

    async def amemory_feedback(
        episode_id: Id, text: Opinion, success: Success = None, runtime: ToolRuntime[Any, Any] = _NO_RUNTIME
    ) -> str:
        return await _arun(identity, runtime, _fed_back(episode_id, text, success))

    return _tool(memory_feedback, amemory_feedback)


def _recalled(query: str, k: int) -> Plan[str]:
    found: Recollection = yield Call("recall", {"query": query, "k": k, "token_budget": _TOKEN_BUDGET})
    if not found.results:
        return "Nothing was found."
    ids = [f"{place}. {one.trajectory_id}" for place, one in enumerate(found.episodes(), 1)]
    return "\n".join([assemble(found), "Ids of these episodes, in their order:", *ids])


def _remembered(text: str) -> Plan[str]:
    text = steps.storable(text).strip()
    if not text:
        raise ToolException("There is nothing to remember: the text is empty.")
    digest = hashlib.sha256(text.encode()).hexdigest()
    said = steps.message("note", text, ref="note")
    episode = {"steps": [said], "source": "langchain-note", "source_id": digest, "started_at": datetime.now(UTC)}
    receipt: RecordReceipt = yield Call("record", {"trajectory": episode})
    return f"Remembered as {receipt.id}."


def _forgotten(ids: Sequence[str]) -> Plan[str]:
    wanted = Filter(trajectory_ids=frozenset(ids))
    there: list[Trajectory] = yield Call("export", {"where": wanted})
    if not there:
        raise ToolException("No such episode is in the memory. Ids are given by recall_memory.")
    told = [_told(one) for one in there]
    answer = interrupt({"action": "forget_memory", "question": _question(len(there)), "episodes": told})
    if not _confirmed(answer):
        return "Nothing was forgotten: it was not confirmed."
    receipt: ForgetReceipt = yield Call("forget", {"trajectory_ids": [one.id for one in there]})
    said = f"Forgotten: {', '.join(receipt.removed) or 'nothing'}."
    if receipt.tainted:
        said += f" Adapters that learned from it no longer serve: {', '.join(receipt.tainted)}."
    return said


def _fed_back(episode_id: str, text: str, success: bool | None) -> Plan[str]:
    arguments = {"trajectory_id": episode_id, "text": steps.storable(text), "success": success}
    try:
        yield Call("feedback", arguments)
    except TrajectoryNotFound:
        raise ToolException(f"No episode {episode_id!r} is in the memory. Ids are given by recall_memory.") from None
    return "Noted."


def _question(count: int) -> str:
    return f"Forget {'this episode' if count == 1 else f'these {count} episodes'} for good?"


def _told(episode: Trajectory) -> dict[str, Any]:
    """What somebody who is asked sees of an episode; JSON."""
    first = episode.goal or next((step.text for step in episode.steps if step.text), "")
    time = episode.time
    return {"id": episode.id, "about": first[:300], "time": time.isoformat() if time else None}


def _confirmed(answer: Any) -> bool:
    if isinstance(answer, dict):
        answer = answer.get("confirm", False)
    return answer is True or (isinstance(answer, str) and answer.strip().lower() in _YES)


def _tool(function: Callable[..., str], coroutine: Callable[..., Any]) -> BaseTool:
    return StructuredTool.from_function(
        function, coroutine, name=function.__name__, description=function.__doc__, handle_tool_error=True
    )


def _run(identity: Identity, runtime: ToolRuntime[Any, Any] | None, plan: Plan[str]) -> str:
    try:
        return ask(identity.memory(runtime, _config(runtime)), plan)
    except RagTunedMemoryError as error:
        raise _as_tool_error(error) from error


async def _arun(identity: Identity, runtime: ToolRuntime[Any, Any] | None, plan: Plan[str]) -> str:
    try:
        return await aask(identity.memory(runtime, _config(runtime)), plan)
    except RagTunedMemoryError as error:
        raise _as_tool_error(error) from error


def _config(runtime: ToolRuntime[Any, Any] | None) -> Any:
    return runtime.config if runtime is not None else None


def _as_tool_error(error: RagTunedMemoryError) -> Exception:
    """What the model is told; that nobody is named is the program's mistake, not the model's."""
    return error if isinstance(error, InvalidNamespace) else ToolException(str(error))
