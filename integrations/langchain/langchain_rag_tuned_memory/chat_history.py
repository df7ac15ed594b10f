"""``RagTunedChatMessageHistory``: the conversations of ``RunnableWithMessageHistory`` and other old code."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage

from langchain_rag_tuned_memory._history_steps import SOURCE, goal_of, to_messages, to_steps
from langchain_rag_tuned_memory._namespaces import asked_namespace, memory_of
from rag_tuned_memory import AsyncMemory, Memories, Memory, Trajectory
from rag_tuned_memory.errors import InvalidInput, TrajectoryNotFound
from rag_tuned_memory.trajectory import trajectory_id


class RagTunedChatMessageHistory(BaseChatMessageHistory):
    """The messages of one session, kept as one episode that is recalled, distilled and forgotten like any other.

    For code that still asks for a history; new agents keep their threads by a checkpointer and take the middleware.
    What is added is durable and can be recalled when the call returns, also by other processes, and what is read is
    what was added. Text that a recall had put into a message is left out. Safe to use from several threads and loops.

    ``memory`` is the memory that holds it; or the memories of many users, with ``namespace``: whose session this is,
    else the running chain's config says it (``configurable``, ``namespace``).

    Raises:
        InvalidInput: a session id that is no text; a message that is too large for a step.
        InvalidNamespace: it cannot be told whose session this is.
        RagTunedMemoryError: what the memory raises, such as StoreError: a conversation is not lost in silence.
    """

    def __init__(self, memory: Memory | Memories, session_id: str, *, namespace: str | None = None) -> None:
        self._memory = memory
        self._session = _checked(session_id)
        self._namespace = namespace

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._session

    @property
    def trajectory_id(self) -> str:
        """The id of the session's episode."""
        return trajectory_id(self._of().namespace, SOURCE, self._session)

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """The messages so far; reading them asks the store."""
        return [message for _, message in self.with_refs()]

    async def aget_messages(self) -> list[BaseMessage]:
        """As ``messages``, awaited."""
        return [message for _, message in await self.awith_refs()]

    def with_refs(self) -> list[tuple[str, BaseMessage]]:
        """The messages, each with the ``ref`` by which a recall names its step."""
        return _told(self._of().call(self._stored))

    async def awith_refs(self) -> list[tuple[str, BaseMessage]]:
        """As ``with_refs``, awaited."""
        return _told(await self._of().acall(self._stored))

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Add messages at the end; all of them or, where this raises, none."""
        self._of().call(lambda core: self._add(core, messages))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """As ``add_messages``, awaited."""
        await self._of().acall(lambda core: self._add(core, messages))

    def clear(self) -> None:
        """Forget the session: adapters that learned it stop serving."""
        self._of().forget([self.trajectory_id])

    async def aclear(self) -> None:
        """As ``clear``, awaited."""
        await self._of().aforget([self.trajectory_id])

    def _of(self) -> Memory:
        return memory_of(self._memory, asked_namespace(self._namespace, None))

    async def _stored(self, core: AsyncMemory) -> Trajectory | None:
        try:
            return await core.get(trajectory_id(core.namespace, SOURCE, self._session))
        except TrajectoryNotFound:
            return None

    async def _add(self, core: AsyncMemory, messages: Sequence[BaseMessage]) -> None:
        stored = await self._stored(core)
        steps = to_steps(messages, stored)
        if not steps:
            return
        goal = goal_of(messages) if stored is None or not stored.goal else ""
        now = datetime.now(UTC)
        await core.extend(
            Trajectory(
                namespace=core.namespace,
                source=SOURCE,
                source_id=self._session,
                goal=goal,
                started_at=now if stored is None else None,
                ended_at=now,
                steps=tuple(steps),
            )
        )


def _told(stored: Trajectory | None) -> list[tuple[str, BaseMessage]]:
    return [] if stored is None else to_messages(stored)


def _checked(session_id: str) -> str:
    try:
        if isinstance(session_id, str) and session_id.strip() and session_id.encode():
            return session_id
    except UnicodeEncodeError:
        pass
    raise InvalidInput(
        f"a session id must be non-empty text, is {session_id!r}",
        place="session_id",
        remedy="Give the id of the conversation.",
    )
