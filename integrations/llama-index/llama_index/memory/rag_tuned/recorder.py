"""``TrajectoryRecorder``: records agent runs whole, whatever memory the agent has."""

from __future__ import annotations

import logging
import os
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import anyio.to_thread
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import active_instrument_tags, instrument_tags
from workflows.handler import WorkflowHandler

from llama_index.memory.rag_tuned import live
from llama_index.memory.rag_tuned.runs import Run
from llama_index.memory.rag_tuned.spans import EventHandler, SpanHandler
from llama_index.memory.rag_tuned.stream import RecordedRun
from llama_index.memory.rag_tuned.tolerance import OnError, overlook
from rag_tuned_memory import Memories, Memory
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.trajectory import Outcome

_log = logging.getLogger(__name__)

_RECORDER = "rag_tuned_memory.recorder"
_NAMESPACE = "rag_tuned_memory.namespace"
_SESSION = "rag_tuned_memory.session"
_RUN = "rag_tuned_memory.run"


class TrajectoryRecorder:
    """Records the runs of workflow agents as episodes: what was asked and answered, tools with results and errors.

        with TrajectoryRecorder(memory) as recorder:
            with recorder.recording(session_id="thread-7"):
                await agent.run(user_msg="…")

    It listens to LlamaIndex's instrumentation, and only runs that begin within ``recording`` are recorded: others,
    and those of other users, are nobody's. Runs that fail or are cancelled are recorded too; one that is stopped while
    a tool waits for a person is paused. ``record_run`` records a single run from its stream of events instead.

    Each step is in a file at once; an episode is stored by a thread of its own, ``flush`` waits for it. ``memory`` is
    the memory of one namespace or ``Memories``; ``close`` ends the recording, and what is still open is paused.
    """

    def __init__(self, memory: Memory | Memories, *, on_error: OnError = "log") -> None:
        self._memory = memory
        self._link = live.link_to(memory)
        self._on_error = on_error
        self._id = f"{os.getpid()}/{uuid.uuid4().hex}"
        self._spans = SpanHandler(self._run_of)
        self._events = EventHandler(self._spans)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rtm recorder")
        self._ended: deque[tuple[Run, Outcome | None]] = deque()
        self._closed = False
        self._spans.on_end(self.store)
        root = get_dispatcher()
        root.add_span_handler(self._spans)
        root.add_event_handler(self._events)

    @contextmanager
    def recording(
        self, namespace: str | None = None, *, session_id: str | None = None, run: str | None = None
    ) -> Iterator[None]:
        """Record the runs that begin in this block.

        Args:
            namespace: whose they are; needed where the recorder has ``Memories``.
            session_id: the conversation that they belong to; by default one of its own.
            run: the run's name in it. A run of the same name, in another process too, goes on with the same episode.

        Raises:
            InvalidNamespace: nobody is named whose runs these are.
            InvalidInput: the recorder was closed.
        """
        with instrument_tags({**active_instrument_tags.get(), **self.tags(namespace, session_id=session_id, run=run)}):
            yield

    def tags(
        self, namespace: str | None = None, *, session_id: str | None = None, run: str | None = None
    ) -> dict[str, str]:
        """The instrument tags that ``recording`` sets, for code that sets its own. Arguments and errors as there."""
        if self._closed:
            raise InvalidInput("the recorder was closed", remedy="Make a new one.")
        tags = {
            _RECORDER: self._id,
            _NAMESPACE: live.namespace_of(self._memory, namespace),
            _SESSION: session_id or uuid.uuid4().hex,
        }
        return {**tags, _RUN: run} if run else tags

    def record_run(
        self,
        handler: WorkflowHandler,
        *,
        namespace: str | None = None,
        session_id: str | None = None,
        run: str | None = None,
        user_msg: str | None = None,
    ) -> RecordedRun:
        """Record one run from its events: ``await`` the result in the place of ``handler``, or iterate over its events.

        A handler's events can be read once, so nobody else may read them. ``user_msg`` is what was asked, where it is
        not the last user message that the model is shown. Arguments and errors else as for ``recording``.
        """
        tags = self.tags(namespace, session_id=session_id, run=run)
        one = self._new_run(tags, run or str(getattr(handler, "run_id", None) or uuid.uuid4().hex))
        one.asked(user_msg)
        return RecordedRun(handler, one, self._astore)

    def flush(self) -> None:
        """Wait until every run that has ended is stored. Raises what storing raises where ``on_error`` says so."""
        if not self._closed:
            error = self._thread.submit(self._drain).result()
            if error is not None and self._on_error == "raise":
                raise error

    async def aflush(self) -> None:
        """As ``flush``, awaited."""
        await anyio.to_thread.run_sync(self.flush)

    def close(self) -> None:
        """Stop listening, and store what is open: runs that have not ended are paused. Closing twice is allowed."""
        if self._closed:
            return
        root = get_dispatcher()
        root.span_handlers = [one for one in root.span_handlers if one is not self._spans]
        root.event_handlers = [one for one in root.event_handlers if one is not self._events]
        for run in self._spans.open_runs():
            self.store(run, None)
        try:
            self.flush()
        finally:
            self._closed = True
            self._thread.shutdown(wait=True)

    def store(self, run: Run, outcome: Outcome | None) -> None:
        """Store a run's episode soon; ``outcome`` None pauses it. Where the store fails it is tried again later."""
        self._ended.append((run, outcome))
        self._thread.submit(self._drain)

    def _drain(self) -> Exception | None:
        """Store what has ended, oldest first, until the store fails; runs in the thread."""
        while self._ended:
            run, outcome = self._ended[0]
            try:
                recorder, episode = self._link.recorder, run.episode
                recorder.pause(episode) if outcome is None else recorder.finish(episode, outcome)
            except Exception as error:
                if isinstance(error, InvalidInput):  # never to be taken
                    self._ended.popleft()
                overlook(error, "log", _log, "a run is not stored yet")
                return error
            self._ended.popleft()
        return None

    async def _astore(self, run: Run, outcome: Outcome | None) -> None:
        try:
            recorder, episode = self._link.recorder, run.episode
            await (recorder.apause(episode) if outcome is None else recorder.afinish(episode, outcome))
        except Exception as error:
            if not isinstance(error, InvalidInput):
                self._ended.append((run, outcome))  # tried again with the next one
            overlook(error, self._on_error, _log, "a run is not stored yet")

    def _run_of(self, tags: Mapping[str, Any], name: str) -> Run | None:
        """A run that begins with these tags; None where it is not this recorder's."""
        if tags.get(_RECORDER) != self._id:
            return None
        return self._new_run(tags, str(tags.get(_RUN) or tags.get("llamaindex.run_id") or name))

    def _new_run(self, tags: Mapping[str, Any], name: str) -> Run:
        return Run(self._link.recorder, str(tags[_NAMESPACE]), str(tags[_SESSION]), name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await anyio.to_thread.run_sync(self.close)
