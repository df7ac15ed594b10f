"""Episodes of an agent: begun, followed and stored as its runs go on, end or stop half-way."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from langchain_core.messages import BaseMessage, HumanMessage

from langchain_rag_tuned_memory._failing import FailOpen
from langchain_rag_tuned_memory._recording import Transcript, text_of
from langchain_rag_tuned_memory._runs import CANCELLED, ENDED, PAUSED, Ending, Run, Runs, ending_of
from langchain_rag_tuned_memory._to_its_end import to_its_end
from langchain_rag_tuned_memory._turns import Turn
from rag_tuned_memory import Step, StepKind
from rag_tuned_memory.capture import EpisodeRecorder, steps
from rag_tuned_memory.trajectory import trajectory_id

SOURCE = "langchain"
GOAL_CHARACTERS = 2000


class Episodes:
    """Keeps the runs of one middleware. Without a recorder nothing is recorded."""

    def __init__(self, recorder: EpisodeRecorder | None, fail_open: FailOpen) -> None:
        self._recorder = recorder
        self._fail_open = fail_open
        self.runs = Runs()

    def follow(self, namespace: str, thread: str | None, turn: Turn, messages: Sequence[BaseMessage]) -> Run:
        """The run of a turn, with its messages so far recorded."""
        run = self.runs.of((namespace, turn.source_id), thread, lambda: self._begin(namespace, thread, turn, messages))
        if run.transcript is not None:
            with self._fail_open("record the messages of a run"):
                run.transcript.observe(messages)
        return run

    def observe(self, run: Run, messages: Sequence[BaseMessage]) -> None:
        """Record further messages, which stand at the end of those before."""
        if run.transcript is not None:
            with self._fail_open("record an answer"):
                run.transcript.observe(messages)

    def model_failed(self, run: Run, error: BaseException) -> Ending:
        """Record why a model call ended without an answer; says what that means for the run."""
        ending = ending_of(error)
        if run.transcript is not None and ending is not PAUSED:
            with self._fail_open("record an error", always=True):
                run.transcript.episode.put(stopped(error, ending))
        return ending

    def tool_failed(self, run: Run, tool: str, call_id: str, error: BaseException) -> Ending:
        """Record the error of a tool; says what it means for the run."""
        ending = ending_of(error)
        if run.transcript is not None and ending is not PAUSED:
            with self._fail_open("record an error", always=True):
                run.transcript.raised(tool, call_id, "cancelled" if ending is CANCELLED else error)
        return ending

    def store(self, run: Run, ending: Ending | None, *, always: bool = False) -> bool:
        """Store a run that ended or waits, if it does. False where the store could not take it: it is tried again."""
        if ending is None or run.transcript is None or self._recorder is None:
            return self._stored(run, ending)
        run.owed = ending
        self._note_equipment(run, run.transcript)
        with self._fail_open("store an episode", always=always):
            if ending.outcome is None:
                self._recorder.pause(run.transcript.episode)
            else:
                self._recorder.finish(run.transcript.episode, ending.outcome)
            return self._stored(run, ending)
        return False

    async def astore(self, run: Run, ending: Ending | None, *, always: bool = False) -> bool:
        """As ``store``, awaited; a task that is being cancelled still stores what it did."""
        if ending is None or run.transcript is None or self._recorder is None:
            return self._stored(run, ending)
        run.owed = ending
        self._note_equipment(run, run.transcript)
        with self._fail_open("store an episode", always=always):
            if ending.outcome is None:
                await to_its_end(self._recorder.apause(run.transcript.episode))
            else:
                await to_its_end(self._recorder.afinish(run.transcript.episode, ending.outcome))
            return self._stored(run, ending)
        return False

    def _note_equipment(self, run: Run, transcript: Transcript) -> None:
        # not in the model call: telling of ten tools takes milliseconds
        if run.equipment is not None:
            with self._fail_open("note the agent's tools", always=True):
                transcript.episode.note(run.equipment.metadata())

    def recover(self) -> None:
        """Store what processes that are gone left open."""
        if self._recorder is not None:
            with self._fail_open("store what an earlier process left open"):
                self._recorder.recover()

    def close(self) -> None:
        """Store every run that is under way, as paused where it did not end."""
        for run in self.runs.every():
            if not run.stored and not self.store(run, run.owed or PAUSED, always=True):
                break

    def _stored(self, run: Run, ending: Ending | None) -> bool:
        if ending is not None:
            run.owed = None
            if ending.rank >= ENDED.rank:
                self.runs.ended(run)
        return True

    def _begin(
        self, namespace: str, thread: str | None, turn: Turn, messages: Sequence[BaseMessage]
    ) -> Transcript | None:
        if self._recorder is None:
            return None
        with self._fail_open("begin an episode"):
            asked = next((one for one in reversed(messages) if isinstance(one, HumanMessage)), None)
            return Transcript(
                self._recorder.begin(
                    namespace,
                    source=SOURCE,
                    source_id=steps.storable(turn.source_id),
                    goal=steps.storable(text_of(asked))[:GOAL_CHARACTERS] if asked else "",
                    started_at=turn.start,
                    metadata={"thread_id": thread} if thread else {},
                )
            )
        return None


def episode_id(namespace: str, turn: Turn) -> str:
    """The id that the turn's trajectory has in the memory."""
    return trajectory_id(namespace, SOURCE, steps.storable(turn.source_id))


def stopped(error: BaseException, ending: Ending) -> Step:
    """The step that tells why a run, or a model's call, ended."""
    ref = f"error-{uuid4()}"  # each time that a run fails is another one
    if ending is CANCELLED:
        text = f"The run was cancelled ({type(error).__name__})."
        return Step(kind=StepKind.OBSERVATION, text=text, error="cancelled", ref=ref)
    return steps.failure(error, ref=ref)
