"""``AsyncMemory``: all that one namespace can do. ``Memory`` is its blocking face."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.to_thread

from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.distil.policy import DistilPolicy
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.embedding.base import Embedder
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.learning.events import DistilReport, OnEvent
from rag_tuned_memory.learning.worker import Round, Worker, WorkerThread
from rag_tuned_memory.memory import forgetting, generating, journal, recording
from rag_tuned_memory.memory.feedback import feedback_step
from rag_tuned_memory.memory.intake import Given
from rag_tuned_memory.memory.receipts import ForgetReceipt, MemoryStats, RecordReceipt
from rag_tuned_memory.memory.wiring import Parts
from rag_tuned_memory.recall.recollection import Recollection
from rag_tuned_memory.routing.answering import AnswerChunk
from rag_tuned_memory.routing.base import Answer, Route, Routing
from rag_tuned_memory.serving.base import Chunk, Generation, InferenceBackend, Message, Request
from rag_tuned_memory.settings import Settings
from rag_tuned_memory.store.base import NO_FILTER, EpisodeStore, Filter
from rag_tuned_memory.trajectory import Trajectory, validate_namespace

R = TypeVar("R")


class AsyncMemory:
    """The memory of one namespace.

    Store, embedder, backend and registry are used where they are given, and stay their owner's to close; else they are
    opened from ``settings`` when first needed. Recording and recalling never load the language model. Use it as an
    async context manager, or call ``close``. One event loop at a time may use it.

    Raises:
        InvalidNamespace: see ``validate_namespace``.
        InvalidInput: a setting of the environment has a value that cannot be.
    """

    def __init__(
        self,
        namespace: str,
        *,
        settings: Settings | None = None,
        store: EpisodeStore | None = None,
        embedder: Embedder | None = None,
        backend: InferenceBackend | None = None,
        registry: AdapterRegistry | None = None,
    ) -> None:
        self._bind(namespace, Parts(settings, store, embedder, backend, registry), owned=True)

    @classmethod
    def over(cls, parts: Parts, namespace: str) -> Self:
        """A memory that shares ``parts`` with others; ``close`` only ends its workers."""
        memory = cls.__new__(cls)
        memory._bind(namespace, parts, owned=False)
        return memory

    def _bind(self, namespace: str, parts: Parts, *, owned: bool) -> None:
        self.namespace = validate_namespace(namespace)
        self._parts = parts
        self._owned = owned
        self._workers: list[WorkerThread] = []

    @property
    def settings(self) -> Settings:
        """The settings in use."""
        return self._parts.settings

    @property
    def registry(self) -> AdapterRegistry:
        """The adapters, of this namespace and others."""
        return self._parts.registry

    async def record(self, trajectory: Given) -> RecordReceipt:
        """Store an episode: a ``Trajectory`` of this namespace, or its fields.

        When this returns, the episode is on disk and can be recalled. Recording the same one again changes nothing;
        other content under the same id replaces it, and feedback that was given on it is kept. Text that a recall had
        put into a prompt is left out.

        Raises:
            InvalidTrajectory, InvalidNamespace: names the field; nothing was stored.
            ModelNotPulled, MissingExtra: the embedder is not on this machine.
            StoreError: see ``errors``; nothing was stored.
        """
        return await recording.record(self._parts, self.namespace, trajectory)

    async def extend(self, trajectory: Given) -> RecordReceipt:
        """As ``record``, but what is stored under the same id keeps the steps that this one lacks.

        Two steps are the same one where kind and ``call_id`` (or else ``ref``) agree: recording a run as it goes on,
        after an interrupt, in another process or once more gives one episode. Raises as ``record`` does.
        """
        return await recording.extend(self._parts, self.namespace, trajectory)

    async def record_many(
        self, trajectories: Iterable[Given], *, progress: Callable[[RecordReceipt], None] | None = None
    ) -> list[RecordReceipt]:
        """Store episodes, embedding several at a time; ``progress`` is called after each.

        One that cannot be taken is reported by its receipt's ``error``, in its place, and the others go on. Where
        ``trajectories`` itself raises (an importer at a bad line), what came before is stored, and the error passed on.
        The iterable is read in a worker thread.
        """
        return await recording.record_many(self._parts, self.namespace, trajectories, progress)

    async def get(self, trajectory_id: str) -> Trajectory:
        """The episode with this id. Raises TrajectoryNotFound."""
        store = await anyio.to_thread.run_sync(self._parts.store)
        return (await store.get(self.namespace, trajectory_id)).trajectory

    async def call(self, work: Callable[[AsyncMemory], Awaitable[R]]) -> R:
        """What ``work`` returns for this memory.

        For the blocking face: what takes several steps (read, decide, write) goes to the memory's thread once.
        """
        return await work(self)

    async def recall(
        self, query: str, *, k: int = 10, token_budget: int | None = None, where: Filter | None = None
    ) -> Recollection:
        """The passages that tell most about ``query``: at most ``k``, and at most ``token_budget`` tokens as prompt.

        Raises:
            InvalidInput: an empty query, ``k`` below 1, a negative budget.
            EmbedderMismatch: the stored vectors are of another embedder; ``reindex`` rebuilds them.
        """
        engine = await anyio.to_thread.run_sync(self._parts.recall)
        return await engine.recall(self.namespace, query, k=k, token_budget=token_budget, where=where or NO_FILTER)

    async def answer(
        self,
        query: str,
        *,
        route: Route | None = None,
        k: int = 4,
        token_budget: int = 320,
        where: Filter | None = None,
        max_new_tokens: int = 48,
    ) -> Answer:
        """Answer by the tuned model, by retrieval, by both or without memory, as routing decides or ``route`` says.

        Raises:
            InvalidInput: an empty query, or no such route.
            ModelNotPulled: the base model is not on this machine.
            AdapterNotServable: ``route`` needs an adapter and none serves.
        """
        answerer = await anyio.to_thread.run_sync(self._parts.answerer)
        return await answerer.answer(
            self.namespace,
            query,
            route=_route(route),
            k=k,
            token_budget=token_budget,
            where=where or NO_FILTER,
            max_new_tokens=max_new_tokens,
        )

    async def stream(
        self,
        query: str,
        *,
        route: Route | None = None,
        k: int = 4,
        token_budget: int = 320,
        where: Filter | None = None,
        max_new_tokens: int = 48,
    ) -> AsyncIterator[AnswerChunk]:
        """As ``answer``, in pieces; the last one carries the whole ``Answer``. Closing the iterator stops the model.

        The first one tells by ``begun`` what is known before anything is said: route, reason, evidence, adapter.
        """
        answerer = await anyio.to_thread.run_sync(self._parts.answerer)
        async for chunk in answerer.stream(
            self.namespace,
            query,
            route=_route(route),
            k=k,
            token_budget=token_budget,
            where=where or NO_FILTER,
            max_new_tokens=max_new_tokens,
        ):
            yield chunk

    async def generate(
        self,
        messages: Sequence[Message],
        *,
        adapter: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        pattern: str | None = None,
    ) -> Generation:
        """Continue a conversation as it is, by an adapter of this namespace or (None) the base model.

        Nothing is recalled or routed: this is for an agent whose own model is served here. ``adapter`` is the version
        that serves, or one before it while that is still loaded. Where ``pattern`` is given, the answer matches this
        regular expression.

        Raises:
            AdapterNotFound: this namespace has no such adapter.
            AdapterNotServable: it does not serve.
            ModelNotPulled: the base model is not on this machine.
            PromptTooLong, BackendError: see ``errors``.
        """
        request = Request(tuple(messages), adapter, max_new_tokens, temperature, seed, tuple(stop), pattern=pattern)
        return await generating.generate(await anyio.to_thread.run_sync(self._parts.live), self.namespace, request)

    async def stream_generate(
        self,
        messages: Sequence[Message],
        *,
        adapter: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        pattern: str | None = None,
    ) -> AsyncIterator[Chunk]:
        """As ``generate``, in pieces; the last one carries the whole ``Generation``. Closing it stops the model."""
        request = Request(tuple(messages), adapter, max_new_tokens, temperature, seed, tuple(stop), pattern=pattern)
        live = await anyio.to_thread.run_sync(self._parts.live)
        async for chunk in generating.stream(live, self.namespace, request):
            yield chunk

    async def decide(
        self,
        query: str,
        *,
        task: bool = False,
        k: int = 4,
        token_budget: int | None = 320,
        where: Filter | None = None,
    ) -> Routing:
        """Recall, and say how ``answer`` would answer, for a program that asks a served model by itself.

        With ``task`` the query is something that an agent is to do: the adapter is on where it was measured to act as
        recorded, whatever new thing the task names. Nothing is generated; an adapter that the decision names is loaded
        and proven. Raises as ``answer`` does.
        """
        answerer = await anyio.to_thread.run_sync(self._parts.answerer)
        return await answerer.decide(
            self.namespace, query, task=task, k=k, token_budget=token_budget, where=where or NO_FILTER
        )

    async def adapter(self) -> str | None:
        """The adapter that answers now, loaded into the backend and proven; None when none serves.

        Raises:
            ModelNotPulled: the base model is not on this machine.
            CanaryMismatch, AdapterDamaged, BackendError: what serves by the registry cannot be loaded or trusted.
        """
        live = await anyio.to_thread.run_sync(self._parts.live)
        manifest = await live.current(self.namespace)
        return manifest.name if manifest else None

    async def distil(
        self,
        recipe: Recipe | None = None,
        *,
        on_event: OnEvent | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> DistilReport:
        """Make an adapter of what is stored; it serves at once if the gate accepts it.

        An interrupted run of the same episodes and recipe is gone on with. ``on_event`` and ``should_stop`` may be
        called from worker threads.

        Raises:
            NotEnoughEpisodes, DistilBusy, TrainingDiverged: see ``errors``.
            TrainingStopped: ``should_stop`` said so; a checkpoint is kept.
        """
        from rag_tuned_memory.memory.distilling import distil

        stop = should_stop or (lambda: False)
        report = await distil(self._parts, self.namespace, recipe, on_event, stop, self._roll_out)
        await self._refresh()
        return report

    async def promote(self, name: str, reason: str) -> None:
        """Let an accepted or retired adapter answer.

        Where a server answers (``RTM_BACKEND``), it loads and proves the adapter first; what served goes on serving
        when that fails. In this process, and every other one, an adapter is proven when it is first used.

        Raises:
            AdapterNotFound, AdapterNotServable, IllegalTransition, AdapterDamaged, CanaryMismatch, BackendError.
        """
        if self._parts.settings.backend:
            await self._roll_out(name, reason)
            return
        promote = self._parts.registry.promote
        await anyio.to_thread.run_sync(lambda: promote(name, reason, namespace=self.namespace))
        await self._refresh()

    async def forget(
        self, trajectory_ids: Sequence[str] | None = None, *, where: Filter | None = None
    ) -> ForgetReceipt:
        """Remove episodes with all that the store derived from them, and taint every adapter that learned one.

        A tainted adapter stops serving at once. The receipt says what was removed and what is still to do.

        Raises:
            InvalidInput: not exactly one of ``trajectory_ids`` and ``where`` was given.
        """
        parts = self._parts
        store = await anyio.to_thread.run_sync(parts.store)
        ids = await forgetting.chosen(store, self.namespace, trajectory_ids, where)
        copies = [parts.teacher_replies(self.namespace), parts.reindexed(self.namespace)]
        runs = parts.settings.runs_dir
        home = parts.settings.home
        await anyio.to_thread.run_sync(lambda: journal.forget(home, self.namespace, ids))
        receipt = await forgetting.forget(store, parts.registry, runs, copies, self.namespace, ids)
        if receipt.tainted:
            await self._refresh()
        return receipt

    async def forget_all(self) -> ForgetReceipt:
        """As ``forget`` for every episode, then remove the namespace from the store. Nobody may record meanwhile."""
        store = await anyio.to_thread.run_sync(self._parts.store)
        home = self._parts.settings.home
        await anyio.to_thread.run_sync(lambda: journal.forget(home, self.namespace, None))
        receipt = await self.forget([stored.trajectory.id async for stored in store.scan(self.namespace)])
        await store.drop_namespace(self.namespace)
        return receipt

    async def feedback(
        self, trajectory_id: str, text: str, *, success: bool | None = None, score: float | None = None
    ) -> RecordReceipt:
        """Add what somebody thinks of an episode as a step; it can be recalled, and its id stays.

        ``success`` and ``score`` replace those of the outcome where they are given.

        Raises:
            TrajectoryNotFound: it is not in this namespace.
            InvalidInput: an empty text, or a score that is no finite number.
        """
        step = feedback_step(text, success=success, score=score)
        return await recording.add_feedback(self._parts, self.namespace, trajectory_id, step)

    async def stats(self) -> MemoryStats:
        """Counts of what is stored, the adapters with their states, and how far the serving one has learned."""
        store = await anyio.to_thread.run_sync(self._parts.store)
        registry = self._parts.registry

        adapters = await anyio.to_thread.run_sync(
            lambda: {one.name: registry.state(one.name).value for one in registry.list(self.namespace)}
        )
        serving = await anyio.to_thread.run_sync(registry.serving, self.namespace)
        stored = await store.stats(self.namespace)
        newer = stored.trajectories
        if serving is not None:
            newer = 0
            async for _ in store.scan(self.namespace, after=serving.watermark.sequence):
                newer += 1
        return MemoryStats(
            namespace=self.namespace,
            store=stored,
            adapters=adapters,
            serving=serving.name if serving else None,
            watermark=serving.watermark if serving else None,
            newer_episodes=newer,
        )

    async def export(self, *, where: Filter | None = None) -> AsyncIterator[Trajectory]:
        """All episodes in the order in which they were written, or those that ``where`` lets through."""
        store = await anyio.to_thread.run_sync(self._parts.store)
        async for stored in store.scan(self.namespace, where=where or NO_FILTER):
            yield stored.trajectory

    async def reindex(self, *, progress: Callable[[int, int], None] | None = None) -> int:
        """Rebuild passages, vectors and text index from the trajectories, with the present embedder.

        The old ones serve until the new ones are complete; an interrupted rebuild goes on where it was. ``progress``
        gets trajectories done and in all, which is also what is returned.
        """
        from rag_tuned_memory.memory.reindexing import reindex

        engine = await anyio.to_thread.run_sync(self._parts.recall)
        return await reindex(engine, self.namespace, self._parts.reindexed(self.namespace), progress)

    async def start_worker(
        self,
        policy: DistilPolicy | None = None,
        *,
        interval: float = 30.0,
        on_round: Callable[[Round], None] | None = None,
    ) -> AsyncWorkerHandle:
        """Distil in the background whenever ``policy`` says so, looked at every ``interval`` seconds.

        It works in a thread of its own: recording and answering go on meanwhile. Another process that distils this
        namespace is left to it. ``on_round`` is called from that thread.
        """
        worker = await self.worker(policy, interval=interval, on_round=on_round)
        thread = WorkerThread(worker)
        self._workers.append(thread)
        return AsyncWorkerHandle(thread)

    async def worker(
        self,
        policy: DistilPolicy | None = None,
        *,
        interval: float = 30.0,
        on_round: Callable[[Round], None] | None = None,
        stopping: threading.Event | None = None,
    ) -> Worker:
        """A worker that was not started, for programs that run it themselves; ``stopping`` ends several at once."""
        from rag_tuned_memory.memory.distilling import distil, in_present_loop

        parts = self._parts
        roll_out = in_present_loop(self._roll_out)
        return Worker(
            self.namespace,
            store=await anyio.to_thread.run_sync(parts.store),
            registry=parts.registry,
            distil=lambda should_stop: distil(parts, self.namespace, None, None, should_stop, roll_out),
            policy=policy,
            runs=parts.settings.runs_dir,
            interval=interval,
            on_round=on_round,
            stopping=stopping,
        )

    async def close(self) -> None:
        """Stop the workers and close what was opened here; closing twice is allowed."""
        with anyio.CancelScope(shield=True):
            for thread in self._workers:
                await anyio.to_thread.run_sync(thread.stop)
            self._workers.clear()
            if self._owned:
                await self._parts.close()

    async def _roll_out(self, name: str, reason: str) -> None:
        await anyio.to_thread.run_sync(lambda: self._parts.registry.get(name, namespace=self.namespace))
        live = await anyio.to_thread.run_sync(self._parts.live)
        await live.roll_out(name, reason)

    async def _refresh(self) -> None:
        """Let a promotion or a taint of this process take effect now."""
        if (live := self._parts.opened_live()) is not None:
            await live.refresh(self.namespace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncWorkerHandle:
    """A worker that runs in the background."""

    def __init__(self, thread: WorkerThread) -> None:
        self._thread = thread

    @property
    def running(self) -> bool:
        """Whether it still works."""
        return self._thread.running

    async def stop(self) -> None:
        """End it and wait until it has: a run under way keeps a checkpoint, from which the next one goes on."""
        await anyio.to_thread.run_sync(self._thread.stop)


def _route(route: Route | None) -> Route | None:
    """A route, also where it was given as text."""
    try:
        return None if route is None else Route(route)
    except ValueError:
        names = ", ".join(Route)
        raise InvalidInput(f"no route is named {route!r}", place="route", remedy=f"Allowed are {names}.") from None
