"""``RagTunedMemory``: the memory of an agent's session, short-term and long-term."""

from __future__ import annotations

import logging
import uuid
from typing import Any, Self

import anyio.to_thread
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory.types import BaseMemory
from pydantic import ConfigDict, Field, PrivateAttr, ValidationError, model_serializer

from llama_index.memory.rag_tuned import live
from llama_index.memory.rag_tuned.live import Origin
from llama_index.memory.rag_tuned.messages import text_of
from llama_index.memory.rag_tuned.session import Question, Session, State
from llama_index.memory.rag_tuned.tolerance import OnError, overlook
from llama_index.memory.rag_tuned.window import CountTokens, Insert, with_recalled
from rag_tuned_memory import Filter, Memories, Memory
from rag_tuned_memory.capture import OpenEpisode
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.memory.wiring import load_settings
from rag_tuned_memory.recall.budget import estimate_tokens
from rag_tuned_memory.recall.prompt import assemble
from rag_tuned_memory.trajectory import Namespace, describe

_WINDOW_SHARE = 0.75

_log = logging.getLogger(__name__)


class RagTunedMemory(BaseMemory):
    """The memory of one session of an agent, for ``agent.run(memory=…)`` and chat engines.

    ``get`` gives the newest messages of the session within ``token_limit`` tokens and, in them, what the long-term
    memory recalls for the question: at most ``k`` passages and ``token_budget`` tokens, fenced as untrusted data. An
    agent asks several times in a run; recalled is once a question. ``put`` writes through: each message is in a file
    when it returns, so that a killed process loses nothing, and each turn (a user's message until the answer) is an
    episode that can be recalled as soon as its answer is put. Tokens are counted by ``count_tokens``, or estimated.

    ``memory`` is the memory of one namespace, or ``Memories`` with ``namespace`` naming whose session it is; where only
    a namespace is given, its memory is opened from the settings (RTM_*). ``insert_method`` is where recalled text goes:
    into the last user message, or into a system message (which a ``ReActAgent`` without a system prompt drops). With
    ``record=False`` nothing is recorded: for agents that a ``TrajectoryRecorder`` records. ``on_error="log"`` lets the
    agent go on where the memory fails.

    It goes through JSON with the workflow's context, messages included. In the same process the restored one finds its
    memory again; in another one that is opened anew, when first needed, from the settings in ``origin`` and, for
    secrets, the environment. What is restored goes its own way; a copy is the same session.

    Raises:
        InvalidNamespace: nobody is named whose memory this is.
        InvalidInput: a value that cannot be; names the field.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    namespace: Namespace = Field(frozen=True)
    session_id: str = Field(min_length=1, max_length=512, frozen=True)
    origin: Origin
    k: int = Field(default=10, ge=1)
    token_budget: int = Field(default=1000, ge=0)
    token_limit: int = Field(default=8000, ge=1)
    insert_method: Insert = "user"
    record: bool = True
    on_error: OnError = "log"

    _session: Session = PrivateAttr()
    _count: CountTokens = PrivateAttr()

    def __init__(
        self,
        memory: Memory | Memories | None = None,
        *,
        namespace: str | None = None,
        session_id: str | None = None,
        chat_history: list[ChatMessage] | None = None,
        count_tokens: CountTokens | None = None,
        origin: Origin | dict[str, str] | None = None,
        state: State | dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        namespace = live.namespace_of(memory, namespace)
        session_id = uuid.uuid4().hex if session_id is None else session_id
        if origin is None:
            origin = Origin.of(memory.settings if memory is not None else load_settings())
        try:
            super().__init__(**{"namespace": namespace, "session_id": session_id, "origin": origin, **fields})
            restored = State.model_validate(state) if state is not None else None
        except ValidationError as error:
            raise InvalidInput(describe(error), place="RagTunedMemory") from error
        self._count = count_tokens or estimate_tokens
        link = live.link_to(memory) if memory is not None else live.link_named(restored.memory) if restored else None
        if link is not None:
            live.namespace_of(link.memory, namespace)
        self._session = Session(
            self.namespace, self.session_id, count=self._count, link=link, origin=self.origin, state=restored
        )
        if chat_history:
            self._session.replace(chat_history)

    @classmethod
    def class_name(cls) -> str:
        """The name in serialised form."""
        return "RagTunedMemory"

    @classmethod
    def from_defaults(cls, memory: Memory | Memories | None = None, *, llm: Any = None, **kwargs: Any) -> Self:
        """As the constructor; an ``llm`` sets ``token_limit`` to three quarters of its context."""
        if llm is not None and kwargs.get("token_limit") is None:
            kwargs["token_limit"] = max(1, int(llm.metadata.context_window * _WINDOW_SHARE))
        return cls(memory, **kwargs)

    def bind(self, memory: Memory | Memories) -> Self:
        """Use this memory from now on, for a session that was restored where the old one cannot be opened.

        Raises:
            InvalidNamespace: it is another namespace's.
        """
        live.namespace_of(memory, self.namespace)
        self._session.bind(live.link_to(memory))
        self.origin = Origin.of(memory.settings)
        return self

    def get(self, input: str | ChatMessage | None = None, initial_token_count: int = 0, **_: Any) -> list[ChatMessage]:
        """The newest messages with what is recalled for ``input``, or else for the last user message.

        ``initial_token_count`` is what stands in the prompt already. Copies are returned: they may be changed.
        """
        question = self._session.question(_text(input))
        text = self._session.recalled(question) if question else ""
        if question and text is None:
            try:
                memory = self._memory()
                text = assemble(memory.recall(question.text, **self._limits()))
            except Exception as error:
                overlook(error, self.on_error, _log, "the run goes on without what is remembered")
                text = ""
            self._session.remember_recalled(question, text)
        return self._shown(question, text or "", initial_token_count)

    async def aget(
        self, input: str | ChatMessage | None = None, initial_token_count: int = 0, **_: Any
    ) -> list[ChatMessage]:
        """As ``get``, awaited."""
        question = self._session.question(_text(input))
        text = self._session.recalled(question) if question else ""
        if question and text is None:
            try:
                memory = await self._amemory()
                text = assemble(await memory.arecall(question.text, **self._limits()))
            except Exception as error:
                overlook(error, self.on_error, _log, "the run goes on without what is remembered")
                text = ""
            self._session.remember_recalled(question, text)
        return self._shown(question, text or "", initial_token_count)

    def get_all(self) -> list[ChatMessage]:
        """Copies of all messages of the session, without anything recalled."""
        return self._session.all()

    async def aget_all(self) -> list[ChatMessage]:
        """As ``get_all``."""
        return self._session.all()

    def put(self, message: ChatMessage) -> None:
        """Take a message up; an answer ends its turn, and its episode is stored when this returns."""
        self.put_messages([message])

    async def aput(self, message: ChatMessage) -> None:
        """As ``put``, awaited."""
        await self.aput_messages([message])

    def put_messages(self, messages: list[ChatMessage]) -> None:
        """As ``put`` for each."""
        self._session.add(messages, on_error=self.on_error if self.record else None)
        self._store()

    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        """As ``put_messages``, awaited."""
        self._session.add(messages, on_error=self.on_error if self.record else None)
        await self._astore()

    def set(self, messages: list[ChatMessage]) -> None:
        """Other messages in the place of the session's. What is remembered stays, and nothing is recorded again."""
        self._session.replace(messages)
        self._store()

    async def aset(self, messages: list[ChatMessage]) -> None:
        """As ``set``, awaited."""
        self._session.replace(messages)
        await self._astore()

    def reset(self) -> None:
        """Empty the session. What is remembered stays: ``Memory.forget`` removes that."""
        self.set([])

    async def areset(self) -> None:
        """As ``reset``, awaited."""
        await self.aset([])

    def flush(self) -> None:
        """Store what is not stored yet, also of a turn that has no answer so far."""
        self._store()
        if episode := self._session.open_episode():
            try:
                self._session.link().recorder.pause(episode)
            except Exception as error:
                overlook(error, self.on_error, _log, "an episode is not stored yet")

    async def aflush(self) -> None:
        """As ``flush``, awaited."""
        await self._astore()
        if episode := self._session.open_episode():
            try:
                await self._session.link().recorder.apause(episode)
            except Exception as error:
                overlook(error, self.on_error, _log, "an episode is not stored yet")

    @model_serializer(mode="plain")
    def custom_model_dump(self) -> dict[str, Any]:  # type: ignore[override]  # pydantic takes either form
        """JSON: the settings without secrets, the messages, and where the turn under way stands."""
        fields = {name: getattr(self, name) for name in type(self).model_fields if name != "origin"}
        state = self._session.state().model_dump(mode="json")
        return {**fields, "origin": self.origin.model_dump(), "state": state, "class_name": self.class_name()}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self).from_dict, (self.to_dict(),))

    def _memory(self) -> Memory:
        link = self._session.link()
        if link.must_recover:
            link.recover()
        return link.of(self.namespace)

    async def _amemory(self) -> Memory:
        link = self._session.link()
        if link.must_recover:
            await anyio.to_thread.run_sync(link.recover)
        return link.of(self.namespace)

    def _limits(self) -> dict[str, Any]:
        """How much is recalled, and that it is nothing that the window shows."""
        shown = frozenset(self._session.shown_episodes(self.token_limit))
        return {"k": self.k, "token_budget": self.token_budget, "where": Filter(without=shown)}

    def _shown(self, question: Question | None, recalled: str, initial_token_count: int) -> list[ChatMessage]:
        messages = self._session.window(max(1, self.token_limit - initial_token_count))
        last = question is not None and question.last
        return with_recalled(messages, recalled, self.insert_method, asked_last=last)

    def _store(self) -> None:
        for episode in self._session.ended():
            try:
                self._session.link().recorder.finish(episode)
            except Exception as error:
                self._not_stored(episode, error)
            else:
                self._session.stored(episode)

    async def _astore(self) -> None:
        for episode in self._session.ended():
            try:
                await self._session.link().recorder.afinish(episode)
            except Exception as error:
                self._not_stored(episode, error)
            else:
                self._session.stored(episode)

    def _not_stored(self, episode: OpenEpisode, error: Exception) -> None:
        """It stays in its file and is tried again with the next message, unless it can never be taken."""
        if isinstance(error, InvalidInput):
            self._session.stored(episode)
        overlook(error, self.on_error, _log, "an episode is not stored yet")


def _text(given: str | ChatMessage | None) -> str | None:
    text = text_of(given) if isinstance(given, ChatMessage) else given
    return text if text and text.strip() else None
