"""A session: its messages, the turns that they make, and the episode that each turn becomes."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from llama_index.core.base.llms.types import ChatMessage
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from llama_index.memory.rag_tuned import live
from llama_index.memory.rag_tuned.messages import (
    SOURCE,
    MessageSteps,
    copied,
    is_answer,
    is_instruction,
    is_user,
    text_of,
)
from llama_index.memory.rag_tuned.tolerance import OnError, overlook
from llama_index.memory.rag_tuned.window import CountTokens, kept, shown, start_of_window
from rag_tuned_memory.capture import OpenEpisode
from rag_tuned_memory.capture.steps import storable
from rag_tuned_memory.recall.prompt import strip_injected
from rag_tuned_memory.trajectory import trajectory_id

_MOST_GOAL = 2000

_log = logging.getLogger(__name__)


class Turn(BaseModel):
    """From a user's message to the answer: one episode. ``first`` is the place of its first message."""

    source_id: str
    first: int
    started_at: datetime
    ended: bool = False


class State(BaseModel):
    """A session as JSON."""

    memory: str = ""
    """The name of the memory in the process that it comes from."""
    messages: list[dict[str, Any]] = []
    turns: list[Turn] = []


class Question(NamedTuple):
    """What is to be recalled for; ``key`` is the same for all askings of one turn."""

    text: str
    key: tuple[int, str]
    last: bool
    """Whether it is the last user message."""


class Session:
    """The messages of one session in this process; safe to use from several threads.

    ``link`` leads to the memory; where it is None, that is opened from ``origin`` when first needed.
    """

    def __init__(
        self,
        namespace: str,
        session_id: str,
        *,
        count: CountTokens,
        link: live.Link | None,
        origin: live.Origin,
        state: State | None = None,
    ) -> None:
        self.namespace = namespace
        self.session_id = session_id
        self.origin = origin
        self._link = link
        self._count = count
        self._lock = threading.RLock()
        self._kept = [kept(ChatMessage.model_validate(one), count) for one in state.messages] if state else []
        self._turns = list(state.turns) if state else []
        self._steps: MessageSteps | None = None
        self._ended: dict[str, OpenEpisode] = {}
        self._recalled: tuple[tuple[int, str], str] | None = None

    def link(self) -> live.Link:
        """The way to the memory. Raises what opening it raises."""
        link = self._link
        if link is None:
            link = self._link = live.reopened(self.origin)
        return link

    def bind(self, link: live.Link) -> None:
        """Use this memory from now on."""
        self._link = link

    def state(self) -> State:
        """What is needed to go on elsewhere."""
        with self._lock:
            messages = [to_jsonable_python(one.message, fallback=str) for one in self._kept]
            name = self._link.name if self._link is not None else ""
            return State(memory=name, messages=messages, turns=self._turns)

    def add(self, messages: Sequence[ChatMessage], *, on_error: OnError | None) -> None:
        """Take messages up; each is a step of its turn's episode at once, unless ``on_error`` is None.

        Raises what recording raises where ``on_error`` says so; all messages are in the session even then.
        """
        added = [kept(message, self._count) for message in messages]
        failures: list[Exception] = []
        with self._lock:
            for one in added:
                self._kept.append(one)
                if on_error is not None and not is_instruction(one.message):
                    try:
                        self._record(one.message)
                    except Exception as error:
                        failures.append(error)
        for failure in failures:
            overlook(failure, on_error or "log", _log, "a message is not recorded")

    def replace(self, messages: Sequence[ChatMessage]) -> None:
        """Other messages in the place of all; what was recorded stays, and none of them is recorded."""
        added = [kept(message, self._count) for message in messages]
        with self._lock:
            if self._turns and not self._turns[-1].ended:
                self._end_turn()
            self._kept, self._turns, self._steps, self._recalled = added, [], None, None

    def all(self) -> list[ChatMessage]:
        """Copies of all messages."""
        with self._lock:
            return [copied(one.message) for one in self._kept]

    def window(self, limit: int) -> list[ChatMessage]:
        """Copies of the messages to show, within ``limit`` tokens; see ``start_of_window``."""
        with self._lock:
            return shown(self._kept, start_of_window(self._kept, limit))

    def shown_episodes(self, limit: int) -> set[str]:
        """Ids of the episodes whose messages are all in the window: to recall them would say them twice."""
        with self._lock:
            start = start_of_window(self._kept, limit)
            turns = [turn for turn in self._turns if turn.first >= start]
        return {trajectory_id(self.namespace, SOURCE, turn.source_id) for turn in turns}

    def question(self, given: str | None) -> Question | None:
        """What is asked: ``given``, or else what the user said last; None where that is nothing."""
        with self._lock:
            place = self._last_user()
            said = strip_injected(text_of(self._kept[place].message)).strip() if place is not None else ""
        text = storable(given.strip() if given else said)
        return Question(text, (-1 if place is None else place, text), last=text == said) if text else None

    def recalled(self, question: Question) -> str | None:
        """What was recalled for this question in this turn; None where it was not asked yet."""
        with self._lock:
            return self._recalled[1] if self._recalled and self._recalled[0] == question.key else None

    def remember_recalled(self, question: Question, text: str) -> None:
        """Keep it for the other askings of this turn."""
        with self._lock:
            self._recalled = (question.key, text)

    def ended(self) -> list[OpenEpisode]:
        """Episodes that have ended and are not stored yet."""
        with self._lock:
            return list(self._ended.values())

    def stored(self, episode: OpenEpisode) -> None:
        """``episode`` needs no storing any more."""
        with self._lock:
            self._ended.pop(episode.trajectory_id, None)

    def open_episode(self) -> OpenEpisode | None:
        """The episode of the turn under way."""
        with self._lock:
            return self._episode() if self._turns and not self._turns[-1].ended else None

    def _record(self, message: ChatMessage) -> None:
        if is_user(message) or not self._turns:
            self._begin_turn()
        episode = self._episode()
        for step in self._message_steps().of(message):
            episode.put(step)
        self._turns[-1].ended = False
        if is_answer(message):
            self._end_turn()

    def _begin_turn(self) -> None:
        """A turn that begins with the last user message: the newest message, or one of a history that was set."""
        if self._turns and not self._turns[-1].ended:
            self._end_turn()
        place = self._last_user()
        first = len(self._kept) - 1 if place is None else place
        source_id = f"{self.session_id}/{uuid.uuid4().hex}"
        self._turns.append(Turn(source_id=source_id, first=first, started_at=datetime.now(UTC)))
        self._steps = MessageSteps()
        episode = self._episode()
        for one in self._kept[first:-1]:
            for step in self._steps.of(one.message):
                episode.put(step)

    def _end_turn(self) -> None:
        self._turns[-1].ended = True
        episode = self._episode()
        self._ended[episode.trajectory_id] = episode

    def _last_user(self) -> int | None:
        places = range(len(self._kept) - 1, -1, -1)
        return next((place for place in places if is_user(self._kept[place].message)), None)

    def _episode(self) -> OpenEpisode:
        turn = self._turns[-1]
        goal = storable(strip_injected(text_of(self._kept[turn.first].message)))[:_MOST_GOAL]
        return self.link().recorder.begin(
            self.namespace,
            source=SOURCE,
            source_id=turn.source_id,
            goal=goal if is_user(self._kept[turn.first].message) else "",
            started_at=turn.started_at,
            metadata={"session_id": self.session_id},
        )

    def _message_steps(self) -> MessageSteps:
        """Numbers the steps of the present turn; after a restore, what is recorded of it is counted again."""
        if self._steps is None:
            self._steps = MessageSteps()
            for one in self._kept[self._turns[-1].first : -1]:
                self._steps.of(one.message)
        return self._steps
