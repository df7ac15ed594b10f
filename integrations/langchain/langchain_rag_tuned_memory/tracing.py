"""``TrajectoryRecorder``: records any chain, graph or agent by its callbacks."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from langchain_rag_tuned_memory._episodes import SOURCE
from langchain_rag_tuned_memory._failing import FailOpen, OnError
from langchain_rag_tuned_memory._namespaces import CONFIG_KEY, asked_namespace, memory_of
from langchain_rag_tuned_memory._traced import Root, Traced
from rag_tuned_memory import Filter, Memories, Memory, Outcome
from rag_tuned_memory.capture import EpisodeRecorder, OpenEpisode
from rag_tuned_memory.errors import InvalidNamespace

if TYPE_CHECKING:
    Handler = BaseCallbackHandler
else:
    try:
        from langgraph.callbacks import GraphCallbackHandler as Handler
    except ImportError:  # chains are recorded without it
        Handler = BaseCallbackHandler

_log = logging.getLogger(__name__)
_INTERNAL = frozenset({"lc_internal_call", "lc_source"})
"""Either marks a model call of middleware: a summary, routing, a tuned model's note. Older versions set the second."""
_THREADS = 1000
"""Of so many conversations the last episode is known."""

Metadata = Mapping[str, Any]


class TrajectoryRecorder(Handler):
    """Records what runs with it among its callbacks: ``chain.invoke(…, config={"callbacks": [recorder]})``.

    For agents that take no middleware: AgentExecutor, LangGraph's graphs and prebuilt agents, plain chains. Each root
    run is one episode with its goal, messages, tool calls, results and errors, whatever runs inside; it is written down
    as it happens, and stored when the run ends or waits for somebody (an interrupt), also when it fails or is
    cancelled. In a conversation (``thread_id``), a run that is resumed, retried or replayed stays one episode, and so
    does one that ``RagTunedMemoryMiddleware`` records too. Model calls that middleware makes for itself are left out,
    and so is recalled text. Make one for a program; it may serve several runs, threads and event loops at once.

    ``memory`` is where episodes go; or the memories of many users, with ``namespace``: whose runs these are, or a
    function of the run's metadata; else ``config["metadata"]["namespace"]`` says it. ``outcome`` judges a run that
    ended by its output. What goes wrong in the memory is logged, or raised where ``on_error`` is ``raise``.

    Raises:
        InvalidNamespace: when a run begins and it cannot be told whose it is.
    """

    raise_error = True
    """Of what a callback raises, only what this class lets through gets out; see ``on_error``."""

    def __init__(
        self,
        memory: Memory | Memories,
        *,
        namespace: str | Callable[[Metadata], str] | None = None,
        outcome: Callable[[Any], Outcome | None] | None = None,
        on_error: OnError = "log",
    ) -> None:
        self._memory = memory
        self._namespace = namespace
        self._outcome = outcome
        self._recorder = EpisodeRecorder(memory)
        self._fail_open = FailOpen(on_error, _log)
        self._runs: dict[UUID, Traced] = {}
        self._owed: dict[str, tuple[OpenEpisode, Outcome | None]] = {}
        """What ended and could not be stored yet."""
        self._last: OrderedDict[tuple[str, str], str] = OrderedDict()
        """The last episode of each conversation."""
        self._lock = threading.Lock()

    def recover(self) -> None:
        """Store what processes that were killed left open; call it when the program starts."""
        with self._fail_open("store what an earlier process left open"):
            self._recorder.recover()

    def close(self) -> None:
        """Store what could not be stored before, and what is still under way as paused."""
        for one in list(self._owed.values()):
            with self._fail_open("store an episode", always=True):
                self._store(*one)
        self._recorder.close()

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """See ``BaseCallbackHandler``."""
        self._entered(run_id, parent_run_id, inputs, metadata, kwargs.get("name"))
        self._tell(run_id, "look at a part of a run", lambda run: run.entered(parent_run_id, inputs))

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """See ``BaseCallbackHandler``."""
        self._left(run_id, outputs)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """See ``BaseCallbackHandler``."""
        self._left(run_id, error=error)

    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """See ``BaseCallbackHandler``."""
        asked = messages[0] if messages else []
        tools = (kwargs.get("invocation_params") or {}).get("tools")
        self._model_called(run_id, parent_run_id, asked, tools or (), metadata, kwargs.get("name"))

    def on_llm_start(
        self,
        serialized: dict[str, Any] | None,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """See ``BaseCallbackHandler``."""
        asked: list[BaseMessage] = [HumanMessage(one) for one in prompts[:1]]
        self._model_called(run_id, parent_run_id, asked, (), metadata, kwargs.get("name"))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """See ``BaseCallbackHandler``."""
        generation = next((one for some in response.generations for one in some), None)
        if generation is not None:
            answer = generation.message if isinstance(generation, ChatGeneration) else generation.text
            self._tell(run_id, "record an answer", lambda run: run.model_answered(run_id, answer))
        self._left(run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """See ``BaseCallbackHandler``."""
        self._tell(run_id, "record an error", lambda run: run.model_failed(error), error)
        self._left(run_id, error=error)

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """See ``BaseCallbackHandler``."""
        name = kwargs.get("name") or (serialized or {}).get("name") or "unnamed"
        arguments = input_str if inputs is None else inputs
        self._entered(run_id, parent_run_id, arguments, metadata, name)
        call_id = kwargs.get("tool_call_id")
        self._tell(run_id, "record a tool call", lambda run: run.tool_called(run_id, name, arguments, call_id))

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """See ``BaseCallbackHandler``."""
        self._tell(run_id, "record a tool's result", lambda run: run.tool_returned(run_id, output))
        self._left(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """See ``BaseCallbackHandler``."""
        self._tell(run_id, "record a tool's error", lambda run: run.tool_failed(run_id, error), error)
        self._left(run_id, error=error)

    def on_interrupt(self, event: Any) -> None:
        """See LangGraph's ``GraphCallbackHandler``."""
        self._tell(event.run_id, "pause an episode", lambda run: run.interrupted())

    def _model_called(
        self,
        run_id: UUID,
        parent: UUID | None,
        messages: list[BaseMessage],
        tools: Sequence[Any],
        metadata: Metadata | None,
        name: str | None,
    ) -> None:
        if not _INTERNAL.isdisjoint(metadata or {}):
            return
        self._entered(run_id, parent, messages, metadata, name)
        self._tell(run_id, "record the messages of a run", lambda run: run.model_called(messages, tools))

    def _tell(
        self, run_id: UUID, doing: str, what: Callable[[Traced], None], error: BaseException | None = None
    ) -> None:
        """Let the run know, if it is one of ours; ``error`` is on its way to the caller and must not be hidden."""
        run = self._runs.get(run_id)
        if run is not None:
            with self._fail_open(doing, always=error is not None):
                what(run)

    def _entered(
        self, run_id: UUID, parent: UUID | None, inputs: Any, metadata: Metadata | None, name: str | None
    ) -> None:
        """A run began, within another one or as a root."""
        run = self._runs.get(parent) if parent is not None else None
        if run is None:
            thread = (metadata or {}).get("thread_id")
            root = Root(run_id, self._namespace_of(metadata or {}), str(thread) if thread else None, name)
            run = Traced(root, inputs, self._recorder)
        with self._lock:
            run.members.add(run_id)
            self._runs[run_id] = run

    def _namespace_of(self, metadata: Metadata) -> str:
        given = self._namespace(metadata) if callable(self._namespace) else self._namespace
        asked = asked_namespace(metadata.get(CONFIG_KEY) if given is None else given, None)
        if asked is None and isinstance(self._memory, Memories):
            raise InvalidNamespace(
                "this run does not say whose it is",
                place="TrajectoryRecorder",
                remedy=f'Give namespace=… to the recorder, or config={{"metadata": {{"{CONFIG_KEY}": …}}}} to the run.',
            )
        return memory_of(self._memory, asked).namespace

    def _left(self, run_id: UUID, outputs: Any = None, error: BaseException | None = None) -> None:
        """A run is over; with a root the episode is."""
        with self._lock:
            run = self._runs.pop(run_id, None)
            if run is None:
                return
            run.members.discard(run_id)
            if run_id != run.root.id:
                return
            for member in run.members:
                self._runs.pop(member, None)
        with self._fail_open("store an episode", always=error is not None):
            self._finish(run, outputs, error)

    def _finish(self, run: Traced, outputs: Any, error: BaseException | None) -> None:
        before = partial(self._before, run.root)
        episode, ending = run.ended(outputs, before) if error is None else run.broke(error, before)
        self._remember(run.root, episode)
        outcome = self._judged(outputs) if ending is None else ending.outcome
        with self._lock:
            self._owed[episode.trajectory_id] = (episode, outcome)
            owed = list(self._owed.values())
        for one in owed[::-1]:  # this one first: where it cannot be stored, the others cannot either
            self._store(*one)

    def _store(self, episode: OpenEpisode, outcome: Outcome | None) -> None:
        if outcome is None:
            self._recorder.pause(episode)
        else:
            self._recorder.finish(episode, outcome)
        with self._lock:
            self._owed.pop(episode.trajectory_id, None)

    def _judged(self, outputs: Any) -> Outcome:
        with self._fail_open("judge a run"):
            return (self._outcome(outputs) if self._outcome else None) or Outcome()
        return Outcome()

    def _before(self, root: Root) -> str | None:
        """The last episode of a root's thread, of another process too."""
        if root.thread is None:
            return None
        last = self._last.get((root.namespace, root.thread))
        if last is None:
            for one in memory_of(self._memory, root.namespace).export(where=Filter(source=SOURCE)):
                last = one.source_id if one.metadata.get("thread_id") == root.thread else last
        return last

    def _remember(self, root: Root, episode: OpenEpisode) -> None:
        if root.thread is not None:
            with self._lock:
                self._last[root.namespace, root.thread] = episode.opening.source_id
                self._last.move_to_end((root.namespace, root.thread))
                while len(self._last) > _THREADS:
                    self._last.popitem(last=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
