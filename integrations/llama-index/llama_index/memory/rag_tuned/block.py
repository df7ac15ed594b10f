"""``RagTunedMemoryBlock``: the long-term memory as a block of LlamaIndex's own ``Memory``."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio.to_thread
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import BaseMemoryBlock
from llama_index.core.memory import Memory as LlamaIndexMemory
from llama_index.core.utils import get_tokenizer
from pydantic import Field, PrivateAttr, ValidationError

from llama_index.memory.rag_tuned import live
from llama_index.memory.rag_tuned.live import Link
from llama_index.memory.rag_tuned.messages import SOURCE, MessageSteps, is_instruction, is_user, ref_of, text_of
from llama_index.memory.rag_tuned.tolerance import OnError, overlook
from rag_tuned_memory import Memories, Memory
from rag_tuned_memory.capture import OpenEpisode
from rag_tuned_memory.capture.steps import storable
from rag_tuned_memory.errors import InvalidInput, RagTunedMemoryError
from rag_tuned_memory.recall.budget import within
from rag_tuned_memory.recall.prompt import assemble, strip_injected
from rag_tuned_memory.recall.recollection import Recollection
from rag_tuned_memory.trajectory import Namespace, describe

_log = logging.getLogger(__name__)

_MOST_GOAL = 2000
_CACHED = 64
_MARK = "<content_block"
"""Begins a picture in the templates that LlamaIndex renders blocks with; in recalled text it must mean nothing."""


class RagTunedMemoryBlock(BaseMemoryBlock[str]):
    """Recalls for the last user message, and records what the short-term memory lets go of.

    ``Memory.from_defaults(memory_blocks=[RagTunedMemoryBlock(memory)])``. ``memory`` is the memory of one namespace, or
    ``Memories`` with ``namespace``. At most ``k`` passages and ``token_budget`` tokens are recalled; where the whole
    prompt is too long, ``atruncate`` leaves out the worst of them (a block of ``priority`` 0 is never cut).

    LlamaIndex gives a block only what no longer fits into the short-term memory: at the end of a session ``aflush``
    records the rest. Each turn is an episode, recorded once however often it is given.

    Raises:
        InvalidNamespace: nobody is named whose memory this is.
        InvalidInput: a value that cannot be; names the field.
    """

    name: str = "rag_tuned_memory"
    description: str | None = "What is remembered of earlier work."
    priority: int = 1
    namespace: Namespace
    k: int = Field(default=10, ge=1)
    token_budget: int = Field(default=1000, ge=0)
    on_error: OnError = "log"

    _link: Link = PrivateAttr()
    _count: Callable[[str], int] = PrivateAttr()
    _recalled: OrderedDict[tuple[str | None, int, str], tuple[str, Recollection]] = PrivateAttr(
        default_factory=OrderedDict
    )
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _unstored: dict[str, OpenEpisode] = PrivateAttr(default_factory=dict)

    def __init__(
        self,
        memory: Memory | Memories,
        *,
        namespace: str | None = None,
        tokenizer_fn: Callable[[str], Sequence[Any]] | None = None,
        **fields: Any,
    ) -> None:
        try:
            super().__init__(**{"namespace": live.namespace_of(memory, namespace), **fields})
        except ValidationError as error:
            raise InvalidInput(describe(error), place="RagTunedMemoryBlock") from error
        self._link = live.link_to(memory)
        self._count = _counter(tokenizer_fn)

    async def aflush(self, memory: LlamaIndexMemory) -> None:
        """Record all that ``memory`` still holds of its session; call it when a session ends, between two runs."""
        await self.aput(await memory.aget_all(), session_id=memory.session_id)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        turn, query = _question(messages or [])
        if not query:
            return ""
        key = (block_kwargs.get("session_id"), turn, query)
        with self._lock:
            known = self._recalled.get(key)
        if known is not None:
            return known[0]
        try:
            if self._link.must_recover:
                await anyio.to_thread.run_sync(self._link.recover)
            memory = self._link.of(self.namespace)
            found = await memory.arecall(query, k=self.k, token_budget=self.token_budget)
        except Exception as error:
            overlook(error, self.on_error, _log, "the run goes on without what is remembered")
            found = Recollection(namespace=self.namespace, query=query, k=self.k)
        return self._keep(key, found)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        for turn in _turns(messages):
            try:
                episode = self._opened(turn)
                self._unstored[episode.trajectory_id] = episode
            except Exception as error:
                overlook(error, self.on_error, _log, "a turn is not recorded")
        for trajectory_id, episode in list(self._unstored.items()):
            try:
                await self._link.recorder.afinish(episode)
            except InvalidInput as error:  # never to be taken
                del self._unstored[trajectory_id]
                overlook(error, self.on_error, _log, "an episode is not stored yet")
            except (RagTunedMemoryError, OSError) as error:
                overlook(error, self.on_error, _log, "an episode is not stored yet")
            else:
                self._unstored.pop(trajectory_id, None)

    async def atruncate(self, content: str, tokens_to_truncate: int) -> str | None:
        """``content`` at least so many tokens shorter, its worst passages left out; None where nothing is left."""
        with self._lock:
            found = next((known for text, known in self._recalled.values() if text == content), None)
        if found is None:
            return None
        budget = self._count(content) - tokens_to_truncate
        if budget <= 0:
            return None
        fitting = await anyio.to_thread.run_sync(within, found, budget, self._counts)
        text = _told(fitting)
        if not text:
            return None
        self._keep((None, -1, text), fitting)  # it may be cut again
        return text

    def _keep(self, key: tuple[str | None, int, str], found: Recollection) -> str:
        text = _told(found)
        with self._lock:
            self._recalled[key] = (text, found)
            while len(self._recalled) > _CACHED:
                self._recalled.popitem(last=False)
        return text

    def _counts(self, texts: Sequence[str]) -> list[int]:
        return [self._count(text) for text in texts]

    def _opened(self, turn: Sequence[ChatMessage]) -> OpenEpisode:
        session = next((one for message in turn if (one := message.additional_kwargs.get("session_id"))), None)
        steps = MessageSteps()
        made = [step.model_copy(update={"started_at": None}) for message in turn for step in steps.of(message)]
        goal = storable(strip_injected(text_of(turn[0]))) if is_user(turn[0]) else ""
        episode = self._link.recorder.begin(
            self.namespace,
            source=SOURCE,
            source_id=f"{session or 'block'}/{ref_of(0, *[step.model_dump(mode='json') for step in made])}",
            goal=goal[:_MOST_GOAL],
            metadata={"session_id": str(session)} if session else {},
        )
        for step in made:
            episode.put(step)
        return episode


def _told(found: Recollection) -> str:
    return assemble(found).replace(_MARK, "‹content_block")


def _question(messages: Sequence[ChatMessage]) -> tuple[int, str]:
    """How many user messages there are, and the last one's text.

    An agent's second question of a run puts its message once more at the end, which is no other turn.
    """
    said = [strip_injected(text_of(message)).strip() for message in messages if is_user(message)]
    repeated = len(messages) > 1 and is_user(messages[-2]) and is_user(messages[-1]) and said[-1] == said[-2]
    return len(said) - repeated, storable(said[-1]) if said else ""


def _turns(messages: Sequence[ChatMessage]) -> Iterator[list[ChatMessage]]:
    """The turns that messages make, each from a user's message on; instructions are left out."""
    turn: list[ChatMessage] = []
    for message in messages:
        if is_instruction(message):
            continue
        if is_user(message) and turn:
            yield turn
            turn = []
        turn.append(message)
    if turn:
        yield turn


def _counter(tokenizer_fn: Callable[[str], Sequence[Any]] | None) -> Callable[[str], int]:
    """Counts as LlamaIndex's ``Memory`` does; the default tokenizer is loaded when it is first needed."""
    return lambda text: len((tokenizer_fn or get_tokenizer())(text))
