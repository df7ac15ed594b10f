"""The runs that are under way in this process, each with its episode and how it is going to end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from langchain_rag_tuned_memory._equipment import Equipment
from langchain_rag_tuned_memory._recording import Transcript
from rag_tuned_memory import Outcome

try:
    from langgraph.errors import GraphBubbleUp
except ImportError:  # chains are recorded without it

    class GraphBubbleUp(Exception):  # type: ignore[no-redef]
        """Nothing raises it."""


IDLE_SECONDS = 60.0
"""A run in which nothing happened for so long is stored as paused: nobody may ever go on with it."""
_AT_ONCE = 4
"""So many are stored at most when another run begins, which waits for it."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a run stops. Of several, the one of the highest ``rank`` counts; without an outcome it may go on."""

    rank: int
    outcome: Outcome | None


PAUSED = Ending(0, None)
CANCELLED = Ending(1, Outcome())
FAILED = Ending(2, Outcome(success=False))
ENDED = Ending(3, Outcome())


def ending_of(error: BaseException) -> Ending:
    """What an error that leaves a hook means: an interrupt or a hand-over is a pause, a cancellation no failure."""
    if isinstance(error, GraphBubbleUp):
        return PAUSED
    if isinstance(error, asyncio.CancelledError) or not isinstance(error, Exception):
        return CANCELLED
    return FAILED


@dataclass(eq=False, slots=True)
class Run:
    """One turn of one conversation. ``transcript`` is None where nothing is recorded."""

    key: tuple[str, str]
    thread: str | None
    transcript: Transcript | None
    remembered: dict[str, Any] = field(default_factory=dict)
    """What was recalled, by the id of the human message that asked for it."""
    equipment: Equipment | None = None
    """Of the last model call."""
    owed: Ending | None = None
    """How it ended, where the store could not take it."""
    touched: float = field(default_factory=time.monotonic)
    _active: int = 0
    _stopped: Ending | None = None
    """As what it was stored last; None once it went on."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def entered(self, *, goes_on: bool = False) -> None:
        """A model or a tool is called. Tools are called beside one that stops the run; a model call goes on with it."""
        with self._lock:
            self._active += 1
            self.touched = time.monotonic()
            if goes_on:
                self._stopped = None

    def left(self, ending: Ending | None = None) -> Ending | None:
        """A call is over. Returns as what the run is to be stored, once no other call is under way beside it."""
        with self._lock:
            self._active -= 1
            self.touched = time.monotonic()
            if ending is not None and (self._stopped is None or ending.rank > self._stopped.rank):
                self._stopped = ending
            return None if self._active else self._stopped

    @property
    def idle(self) -> bool:
        """Whether no model or tool is being called."""
        return self._active == 0

    @property
    def stored(self) -> bool:
        """Whether the memory has all of it."""
        return self._stopped is not None and self.owed is None


class Runs:
    """The runs under way, by namespace and episode. Safe to use from several threads."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], Run] = {}
        self._lock = threading.Lock()

    def of(self, key: tuple[str, str], thread: str | None, transcript: Callable[[], Transcript | None]) -> Run:
        """The run of an episode; ``transcript`` is called for a new one."""
        with self._lock:
            run = self._runs.get(key)
            if run is None:
                run = self._runs[key] = Run(key, thread, transcript())
            return run

    def ended(self, run: Run) -> None:
        """It ended; if it goes on all the same, it is a new one."""
        with self._lock:
            if self._runs.get(run.key) is run:
                del self._runs[run.key]

    def every(self) -> list[Run]:
        """All of them."""
        with self._lock:
            return list(self._runs.values())

    def left_alone(self, namespace: str, thread: str | None, source_id: str) -> list[Run]:
        """A few runs that nobody ended: earlier ones of this conversation, and those that are idle for long."""
        now = time.monotonic()

        def alone(run: Run) -> bool:
            earlier = thread is not None and run.thread == thread and run.key[0] == namespace
            return run.idle and run.key != (namespace, source_id) and (earlier or now - run.touched > IDLE_SECONDS)

        with self._lock:
            found = [run for run in self._runs.values() if alone(run)]
            for run in found:
                if run.stored:
                    del self._runs[run.key]
        return [run for run in found if not run.stored][:_AT_ONCE]
