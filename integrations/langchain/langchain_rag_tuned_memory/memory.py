"""``RagTunedMemory``: memory for the chains and agents of langchain-classic."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, SystemMessage, get_buffer_string
from pydantic import Field, PrivateAttr, model_validator

from langchain_rag_tuned_memory._extras import missing
from langchain_rag_tuned_memory._failing import FailOpen, OnError
from langchain_rag_tuned_memory._namespaces import asked_namespace, memory_of
from langchain_rag_tuned_memory.chat_history import RagTunedChatMessageHistory
from rag_tuned_memory import Memories, Memory, Recollection
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.recall.prompt import assemble

try:
    from langchain_classic.memory.chat_memory import BaseChatMemory
    from langchain_classic.memory.utils import get_prompt_input_key
except ImportError as error:
    raise missing("RagTunedMemory", "langchain-classic", "classic") from error

_log = logging.getLogger(__name__)
Told = Sequence[tuple[str, BaseMessage]]


class RagTunedMemory(BaseChatMemory):
    """Memory of a chain: the last turns of its conversation, and what is recalled for the present input.

    ``ConversationChain(llm=…, memory=RagTunedMemory(memory=memory, session_id="s1"))``; an ``AgentExecutor`` takes it
    too. For code that still takes a ``BaseMemory``; new agents take the middleware. Each turn is durable when it is
    saved, and the session is one episode: see ``RagTunedChatMessageHistory``. What is recalled comes from everything
    that the namespace holds, save the turns that are shown anyway; it is fenced as untrusted data.

    The variable ``memory_key`` holds both, the recalled text first; with ``recall_key`` the recalled text gets a
    variable of its own. ``return_messages`` gives messages instead of text. What goes wrong in the memory is logged and
    the chain goes on without it, or raised where ``on_error`` is ``raise``.

    Raises:
        InvalidInput: a session id that is no text, a window or ``recall_k`` below 0.
        InvalidNamespace: it cannot be told whose memory this is.
    """

    # made below; the inherited default would warn that it is deprecated
    chat_memory: BaseChatMessageHistory = Field(default=None, exclude=True, repr=False)  # type: ignore[assignment]
    memory: Memory | Memories = Field(exclude=True, repr=False)
    """The memory; or those of many users, with ``namespace``."""
    session_id: str
    """The conversation; each has its own."""
    namespace: str | None = None
    """Whose memory it is; else the running chain's config says it (``configurable``, ``namespace``)."""
    window: int = Field(default=5, ge=0)
    """So many of the last turns are shown."""
    recall_k: int = Field(default=4, ge=0)
    """At most so many passages are recalled; 0 recalls nothing."""
    token_budget: int = Field(default=320, ge=0)
    """At most so many tokens of recalled text."""
    memory_key: str = "history"
    recall_key: str | None = None
    human_prefix: str = "Human"
    ai_prefix: str = "AI"
    on_error: OnError = "log"
    _fail_open: FailOpen = PrivateAttr()
    _history: RagTunedChatMessageHistory = PrivateAttr()

    @model_validator(mode="after")
    def _bind(self) -> RagTunedMemory:
        if self.recall_key == self.memory_key:
            raise InvalidInput(f"it is the memory_key {self.memory_key!r} too", place="recall_key")
        self._fail_open = FailOpen(self.on_error, _log)
        self._history = RagTunedChatMessageHistory(self.memory, self.session_id, namespace=self.namespace)
        self.chat_memory = self._history
        return self

    @property
    def memory_variables(self) -> list[str]:
        """The variables that this memory fills in."""
        return [self.memory_key] if self.recall_key is None else [self.memory_key, self.recall_key]

    def load_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The last turns, and what is recalled for the chain's input."""
        memory = self._of()
        told: Told = ()
        found: Recollection | None = None
        with self._fail_open("read the conversation"):
            told = self._history.with_refs()
        query = self._query(inputs)
        if query:
            with self._fail_open("recall"):
                found = memory.recall(query, k=self.recall_k, token_budget=self.token_budget)
        return self._variables(told, found)

    async def aload_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As ``load_memory_variables``, awaited."""
        memory = self._of()
        told: Told = ()
        found: Recollection | None = None
        with self._fail_open("read the conversation"):
            told = await self._history.awith_refs()
        query = self._query(inputs)
        if query:
            with self._fail_open("recall"):
                found = await memory.arecall(query, k=self.recall_k, token_budget=self.token_budget)
        return self._variables(told, found)

    def save_context(self, inputs: dict[str, Any], outputs: dict[str, str]) -> None:
        """Add a turn to the conversation."""
        self._of()
        with self._fail_open("save a turn"):
            super().save_context(inputs, outputs)

    async def asave_context(self, inputs: dict[str, Any], outputs: dict[str, str]) -> None:
        """As ``save_context``, awaited."""
        self._of()
        with self._fail_open("save a turn"):
            await super().asave_context(inputs, outputs)

    def _of(self) -> Memory:
        """Whose memory it is must be known, whatever ``on_error`` says."""
        return memory_of(self.memory, asked_namespace(self.namespace, None))

    def _query(self, inputs: dict[str, Any]) -> str:
        """What to recall for; empty where the chain's input does not tell."""
        if not self.recall_k or not self.token_budget:
            return ""
        try:
            given = inputs[self.input_key or get_prompt_input_key(inputs, self.memory_variables)]
        except (KeyError, ValueError):
            return ""
        return given.strip() if isinstance(given, str) else ""

    def _variables(self, told: Told, found: Recollection | None) -> dict[str, Any]:
        shown = told[max(0, len(told) - 2 * self.window) :] if self.window else ()
        recalled = assemble(_without(found, {ref for ref, _ in shown}, self._history.trajectory_id)) if found else ""
        last = [message for _, message in shown]
        if self.return_messages:
            apart: list[BaseMessage] = [SystemMessage(recalled)] if recalled else []
            if self.recall_key is None:
                return {self.memory_key: [*apart, *last]}
            return {self.memory_key: last, self.recall_key: apart}
        text = get_buffer_string(last, human_prefix=self.human_prefix, ai_prefix=self.ai_prefix)
        if self.recall_key is None:
            return {self.memory_key: "\n\n".join(part for part in (recalled, text) if part)}
        return {self.memory_key: text, self.recall_key: recalled}


def _without(found: Recollection, shown: set[str], session: str) -> Recollection:
    """What was recalled, without the turns that are shown anyway and the session's own heading."""
    kept = tuple(
        one for one in found.results if one.trajectory_id != session or (one.ref is not None and one.ref not in shown)
    )
    return found.model_copy(update={"results": kept})
