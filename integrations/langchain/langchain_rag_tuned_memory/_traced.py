"""One run that callbacks tell of, from its root's start to its end, and the episode that it is written into."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from langchain_rag_tuned_memory._episodes import GOAL_CHARACTERS, SOURCE, stopped
from langchain_rag_tuned_memory._recording import Transcript, call_ids, tool_messages
from langchain_rag_tuned_memory._runs import CANCELLED, PAUSED, Ending, ending_of
from langchain_rag_tuned_memory._seen import (
    Asked,
    answer_of,
    asked_in,
    asked_of_chain,
    equipment_of,
    goes_on,
    kept_turn,
    messages_in,
    since,
    takes_messages,
)
from rag_tuned_memory.capture import EpisodeRecorder, OpenEpisode, steps

Write = Callable[[Transcript], None]


@dataclass(frozen=True, slots=True)
class Root:
    """The run that everything else happens in. ``thread`` is its conversation, ``name`` that of the chain or graph."""

    id: UUID
    namespace: str
    thread: str | None
    name: str | None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Traced:
    """A run under way.

    Its episode is begun when its key is known: the thread and the id of the human message (as this package's middleware
    does, so that both give one record), which a graph assigns after its start; what happens before is kept in memory.
    A run without messages is an episode of its own. Callbacks come from several threads.
    """

    def __init__(self, root: Root, inputs: Any, recorder: EpisodeRecorder) -> None:
        self.root = root
        self.members: set[UUID] = set()
        """Ids of the runs within it that have not ended."""
        self._recorder = recorder
        self._goes_on = goes_on(inputs)
        self._of_messages = self._goes_on or takes_messages(inputs)
        self._asked = (asked_in(messages_in(inputs)) if self._of_messages else asked_of_chain(inputs)) or Asked()
        self._turn: str | None = None
        self._state: list[BaseMessage] = []
        """The conversation before the episode is begun, from the graph's state."""
        self._transcript: Transcript | None = None
        self._waiting: list[Write] = []
        self._made: list[tuple[str, Any, str]] = []
        """Tool calls that the model made and nobody has carried out yet: name, arguments, id."""
        self._changed: set[str] = set()
        """Ids of calls that were carried out with other arguments than the model's messages show."""
        self._tools: dict[UUID, tuple[str, str]] = {}
        """Tools at work: name and call id of each run."""
        self._told: list[BaseException] = []
        """Errors that are recorded."""
        self._spoke = False
        self._paused = False
        self._lock = threading.RLock()

    def entered(self, parent: UUID | None, inputs: Any) -> None:
        """A part of the run began."""
        with self._lock:
            if self._transcript is None and parent == self.root.id:  # further down, another agent may have its own
                self._turn = kept_turn(inputs) or self._turn
                self._state = messages_in(inputs) or self._state
                asked = asked_in(self._state)
                if self._of_messages and asked is not None and asked.id is not None:
                    self._asked = asked

    def model_called(self, messages: Sequence[BaseMessage], tools: Sequence[Any]) -> None:
        """A model is asked, with these tools as its interface takes them."""
        with self._lock:
            asked = asked_in(messages)
            if self._transcript is None and asked is not None and self._asked.id is None:
                self._asked = Asked(self._asked.text or asked.text, asked.id if self._of_messages else None)
            if self._own(messages):
                noted = equipment_of(messages, tools).metadata()
                self._write(lambda transcript: transcript.episode.note(noted))
            self._follow(messages)

    def _own(self, messages: Sequence[BaseMessage]) -> bool:
        """Whether it is this run's own conversation, not that of an agent further down."""
        return bool(since(messages, self._asked)) or (self._asked.id is None and not self._spoke)

    def model_answered(self, run: UUID, answer: BaseMessage | str) -> None:
        """A model has answered."""
        message = answer if isinstance(answer, BaseMessage) else AIMessage(answer)
        message = message if message.id else message.model_copy(update={"id": str(run)})
        with self._lock:
            self._spoke = True
            if isinstance(message, AIMessage):
                made = zip(message.tool_calls, call_ids(message), strict=False)
                self._made += [(call["name"], call["args"], name) for call, name in made]
            self._write(lambda transcript: transcript.observe([message]))

    def model_failed(self, error: BaseException) -> None:
        """A model call ended with an error; whether the run does is not known yet."""
        with self._lock:
            self._tell(error, ending_of(error))

    def tool_called(self, run: UUID, name: str, arguments: Any, call_id: str | None) -> None:
        """A tool is called; agents before LangGraph do not say by which call of the model."""
        with self._lock:
            made = next((one for one in self._made if _same(one, name, arguments, call_id)), None)
            call = made[2] if made else call_id or str(run)
            self._tools[run] = (name, call)
            self._follow(self._state)
            if made is not None:
                self._made.remove(made)
            if made is None or made[1] != arguments:
                self._changed.add(call)
                self._write(lambda transcript: transcript.called(name, arguments, call))

    def tool_returned(self, run: UUID, output: Any) -> None:
        """A tool has given something back."""
        with self._lock:
            name, call = self._tools.pop(run, ("", str(run)))
            messages = tool_messages(output)
            if messages:
                self._write(lambda transcript: transcript.returned(name, call, messages))
            else:
                result = steps.tool_result(name, output, call_id=call)
                self._write(lambda transcript: transcript.episode.put(result))

    def tool_failed(self, run: UUID, error: BaseException) -> None:
        """A tool ended with an error, or waits for somebody."""
        with self._lock:
            name, call = self._tools.pop(run, ("", str(run)))
            ending = ending_of(error)
            if ending is not PAUSED:
                self._told.append(error)
                told = "cancelled" if ending is CANCELLED else error
                self._write(lambda transcript: transcript.raised(name, call, told))

    def interrupted(self) -> None:
        """The graph waits for somebody."""
        self._paused = True

    def ended(self, outputs: Any, before: Callable[[], str | None]) -> tuple[OpenEpisode, Ending | None]:
        """The run is over: its episode, and ``PAUSED`` where it waits, None where it came to an end.

        ``before`` finds the last episode of the same thread: a resumed graph that shows no messages goes on with it.
        """
        with self._lock:
            messages = messages_in(outputs)
            if self._of_messages and self._asked.id is None:
                self._asked = asked_in(messages) or self._asked
            episode = self._begun(messages, before)
            answered = self._spoke or any(isinstance(one, AIMessage) for one in since(messages, self._asked))
            if not answered and not self._paused:
                self._say(answer_of(outputs))
            return episode, PAUSED if self._paused else None

    def broke(self, error: BaseException, before: Callable[[], str | None]) -> tuple[OpenEpisode, Ending | None]:
        """The run ended by an error, was cancelled, or left by whoever read its stream."""
        with self._lock:
            episode = self._begun((), before)
            ending = PAUSED if self._paused else ending_of(error)
            if not any(one is error for one in self._told):
                self._tell(error, ending)
            return episode, ending

    def _tell(self, error: BaseException, ending: Ending) -> None:
        if ending is not PAUSED:
            self._told.append(error)
            step = stopped(error, ending)
            self._write(lambda transcript: transcript.episode.put(step))

    def _say(self, text: str) -> None:
        answer = steps.message("assistant", text, ref=f"{self.root.id}/answer")
        if answer is not None:
            self._write(lambda transcript: transcript.episode.put(answer))

    def _write(self, write: Write) -> None:
        if self._transcript is None:
            self._waiting.append(write)
        else:
            write(self._transcript)

    def _follow(self, messages: Sequence[BaseMessage]) -> None:
        """Begin the episode as soon as its key is known, and write down the conversation so far."""
        known = self._asked.id or self._turn or not self._goes_on
        if self._transcript is None and known:
            self._begin(messages)
        elif self._transcript is not None:
            self._observe(self._transcript, messages)

    def _begun(self, messages: Sequence[BaseMessage], before: Callable[[], str | None]) -> OpenEpisode:
        """The episode, begun at the latest now."""
        if self._transcript is None and self._goes_on and self._asked.id is None and self._turn is None:
            self._turn = before()
        if self._transcript is None:
            return self._begin(messages).episode
        self._observe(self._transcript, messages)
        return self._transcript.episode

    def _observe(self, transcript: Transcript, messages: Sequence[BaseMessage]) -> None:
        said = since(messages, self._asked)
        transcript.observe([one for one in said if self._changed.isdisjoint(call_ids(one))])

    def _begin(self, messages: Sequence[BaseMessage]) -> Transcript:
        thread, asked = self.root.thread, self._asked
        metadata = {"thread_id": thread, "chain": self.root.name}
        episode = self._recorder.begin(
            self.root.namespace,
            source=SOURCE,
            source_id=steps.storable(self._turn or f"{thread or self.root.id}/{asked.id or self.root.id}"),
            goal=steps.storable(asked.text)[:GOAL_CHARACTERS],
            started_at=self.root.started_at,
            metadata={name: steps.storable(value) for name, value in metadata.items() if value},
        )
        self._transcript = transcript = Transcript(episode)
        said = since(messages, asked)
        if not said and asked.text and not self._goes_on:
            said = [HumanMessage(asked.text, id=asked.id or f"{self.root.id}/asked")]
        transcript.observe(said)
        for write in self._waiting:
            write(transcript)
        self._waiting.clear()
        return transcript


def _same(made: tuple[str, Any, str], name: str, arguments: Any, call_id: str | None) -> bool:
    if call_id is not None:
        return made[2] == call_id
    return made[0] == name and made[1] == arguments
