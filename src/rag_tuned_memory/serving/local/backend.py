"""``LocalBackend``: an InferenceBackend that computes in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread

from rag_tuned_memory.errors import AdapterNotLoaded, InvalidInput
from rag_tuned_memory.serving.base import Chunk, Fingerprint, Generation, Request
from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.local.asked import Step, TokenRequest
from rag_tuned_memory.serving.local.batching import Job, check_request, check_tokens
from rag_tuned_memory.serving.local.engine import Engine
from rag_tuned_memory.serving.local.scheduling import Scheduler
from rag_tuned_memory.serving.local.worker import Call, Mailbox, Worker, closed_error


class LocalBackend:
    """Answers with the model in ``folder`` and LoRA adapters on it, in a worker thread of this process.

    The weights are loaded with the first request. Requests of all tasks run as one batch of up to ``max_batch_size``
    rows and ``max_batch_tokens`` padded tokens, which they join and leave between two tokens; a stream goes before
    other requests. It may be used from several event loops.

    Args:
        folder: model and tokenizer as transformers saves them.
        device: a torch device; by default the GPU where there is one.
        dtype: ``"bfloat16"`` or ``"float32"``; by default bfloat16 where the processor computes it natively.
        max_batch_tokens: bounds rows times longest row (prompt and answer), and so the memory of a batch.
        max_batch_size: most rows of a batch.

    Raises:
        ModelNotPulled: ``folder`` holds no model. MissingExtra and ModelIntegrityError come with the first request.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        max_batch_tokens: int = 8192,
        max_batch_size: int = 64,
    ) -> None:
        if dtype not in (None, "bfloat16", "float16", "float32"):
            raise InvalidInput(f"unknown dtype {dtype!r}: it must be bfloat16, float16 or float32")
        if max_batch_size < 1 or max_batch_tokens < 1:
            raise InvalidInput("max_batch_size and max_batch_tokens must be at least 1")
        self._folder = ModelFolder(folder)
        self._load_engine = partial(
            Engine.load,
            self._folder.path,
            device=device,
            dtype=dtype,
            max_rows=max_batch_size,
            max_tokens=max_batch_tokens,
        )
        self._engine: Engine | None = None
        self._names: dict[str, int] = {}
        scheduler = Scheduler(self._loaded, max_rows=max_batch_size, max_tokens=max_batch_tokens)
        self._worker = Worker(self._prepare, scheduler)
        self._closed = False

    @property
    def base_model(self) -> str:
        """The folder's name and a short hash of its files, as ``name@hash``."""
        return self._folder.identity

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answers in the order of the requests. The first error of any request is raised, and the rest dropped.

        ``tokens`` has every generated token, the one that ended the answer too (its text is empty), so that it is
        never empty. Log-probability and entropy are of the model's distribution at temperature 1.

        Raises:
            InvalidInput, AdapterNotLoaded, PromptTooLong, BackendUnavailable: see ``errors``.
        """
        for request in requests:
            check_request(request)
        mailbox: Mailbox[tuple[int, Generation | Exception]] = Mailbox()

        def reporter(index: int) -> Callable[[Generation | Exception], None]:
            return lambda result: mailbox.post((index, result))

        jobs = [Job(request, reporter(index)) for index, request in enumerate(requests)]
        answers: dict[int, Generation] = {}
        try:
            self._worker.submit(*jobs)
            while len(answers) < len(jobs):
                index, result = await mailbox.get()
                if isinstance(result, Exception):
                    raise result
                answers[index] = result
        finally:
            for job in jobs:
                job.cancelled = True
            mailbox.close()
        return [answers[index] for index in range(len(jobs))]

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Text as it is generated, in whole characters; the last chunk carries the generation.

        Closing the iterator (``aclose``, or cancelling the task) stops the generation at the next token.
        """
        check_request(request)
        mailbox: Mailbox[str | Generation | Exception] = Mailbox()
        job = Job(request, on_done=mailbox.post, on_text=mailbox.post)
        try:
            self._worker.submit(job)
            while True:
                item = await mailbox.get()
                if isinstance(item, str):
                    yield Chunk(item)
                elif isinstance(item, Generation):
                    yield Chunk("", item)
                    return
                else:
                    raise item
        finally:
            job.cancelled = True
            mailbox.close()

    async def steps(self, request: TokenRequest) -> AsyncGenerator[Step, None]:
        """Each token of the answer as it comes; the last one has ``finish`` set.

        For servers, which render prompts, cut texts and count tokens in their own ways. Closing the iterator stops the
        generation at the next token.

        Raises:
            InvalidInput, AdapterNotLoaded, PromptTooLong, BackendUnavailable: see ``errors``.
        """
        check_tokens(request)
        mailbox: Mailbox[Step | Exception] = Mailbox()
        job = Job(request, on_done=mailbox.post, on_step=mailbox.post)
        try:
            self._worker.submit(job)
            while True:
                item = await mailbox.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish:
                    return
        finally:
            job.cancelled = True
            mailbox.close()

    async def score_ids(self, ids: Sequence[int], adapter: str | None = None) -> tuple[float, ...]:
        """Natural-log probability of each token but the first, after those before it.

        Raises:
            InvalidInput, AdapterNotLoaded, PromptTooLong, BackendUnavailable: see ``errors``.
        """
        text = tuple(ids)
        if not text:
            raise InvalidInput("there are no tokens to score")
        scores: tuple[float, ...] = await self._call(lambda: self._loaded().score_ids(text, self._slot(adapter)))
        return scores

    async def start(self) -> int:
        """Load the weights now, not with the first request; returns the model's context, in tokens.

        Raises:
            MissingExtra, ModelIntegrityError, BackendUnavailable: see ``errors``.
        """
        context: int = await self._call(lambda: self._loaded().model.context)
        return context

    @property
    def folder(self) -> ModelFolder:
        """The base model's folder."""
        return self._folder

    @property
    def load(self) -> tuple[int, int]:
        """How many requests wait, and how many run."""
        return self._worker.load

    async def score(self, request: Request, completions: Sequence[str]) -> list[tuple[float, ...]]:
        """Natural-log probability of each token of each completion after the request's prompt.

        Completions are plain text; no end-of-answer token is added. One without text has no tokens.

        Raises:
            InvalidInput, AdapterNotLoaded, PromptTooLong, BackendUnavailable: see ``errors``.
        """
        check_request(request)
        texts = list(completions)
        scores: list[tuple[float, ...]] = await self._call(
            lambda: self._loaded().score(request, self._slot(request.adapter), texts)
        )
        return scores

    async def load_adapter(self, name: str, path: Path, fingerprint: Fingerprint | None = None) -> None:
        """Check the files, load them between two steps, prove them by the fingerprint, and only then serve them.

        Raises:
            InvalidInput: the name is empty or in use.
            AdapterDamaged: files are missing, unreadable or do not fit the base model; the model was not touched.
            CanaryMismatch: the adapter was unloaded again, and never answered a request.
        """
        if not name or not name.strip():
            raise InvalidInput("an adapter needs a name")

        def load() -> None:
            if name in self._names:
                raise InvalidInput(
                    f"an adapter named {name!r} is already loaded",
                    remedy="Adapter names are never overwritten: use a new version's name, or unload this one first.",
                )
            self._names[name] = self._loaded().load_adapter(name, Path(path), fingerprint)

        await self._call(load)

    async def unload_adapter(self, name: str) -> None:
        """Refuse new requests for the adapter at once, and free it when those that wait or run are done.

        Raises:
            AdapterNotLoaded: no such adapter.
        """
        slot: int = await self._call(lambda: self._retire(name))
        await self._call(
            lambda: self._loaded().remove_adapter(slot),
            ready=lambda jobs: all(job.slot != slot for job in jobs),
        )

    async def adapters(self) -> list[str]:
        """Names of the loaded adapters, sorted."""
        self._check_open()
        return sorted(self._names)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without a chat template. Needs the tokenizer only, not the weights."""
        self._check_open()
        return await self._folder.count(texts)

    async def close(self) -> None:
        """Stop the worker after the running step; waiting and later requests fail with BackendUnavailable."""
        self._closed = True
        await anyio.to_thread.run_sync(self._worker.close)
        self._engine = None

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error()

    async def _call(self, function: Callable[[], Any], ready: Callable[[list[Job]], bool] | None = None) -> Any:
        """Run a function in the worker thread between two steps. Once queued it runs, also if this is cancelled."""
        mailbox: Mailbox[Any] = Mailbox()
        call = Call(function, mailbox.post, ready) if ready else Call(function, mailbox.post)
        try:
            self._worker.submit(call)
            result = await mailbox.get()
        finally:
            mailbox.close()
        if isinstance(result, Exception):
            raise result
        return result

    # What follows runs in the worker thread.

    def _loaded(self) -> Engine:
        if self._engine is None:
            self._engine = self._load_engine(self._folder.tokenizer())
        return self._engine

    def _slot(self, name: str | None) -> int | None:
        if name is None:
            return None
        if name not in self._names:
            loaded = ", ".join(sorted(self._names)) or "none"
            raise AdapterNotLoaded(f"no adapter {name!r} is loaded (loaded: {loaded})", remedy="Load it first.")
        return self._names[name]

    def _retire(self, name: str) -> int | None:
        slot = self._slot(name)
        del self._names[name]
        return slot

    def _prepare(self, job: Job) -> None:
        job.slot = self._slot(job.request.adapter)
        engine, answer_tokens = self._loaded(), job.request.max_new_tokens
        if isinstance(job.request, TokenRequest):
            engine.check_length(len(job.request.ids), answer_tokens)
            job.ids, job.constraint = job.request.ids, job.request.constraint
        else:
            job.prefix, job.ids = engine.prompt(job.request, answer_tokens=answer_tokens)
            if job.request.pattern is not None:
                job.constraint = engine.grammars.regex(engine.tokenizer, job.request.pattern)
