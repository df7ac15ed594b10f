"""``VllmBackend``: an InferenceBackend that asks a vLLM server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

import anyio.to_thread

from rag_tuned_memory.errors import BackendUnavailable, CanaryMismatch, InvalidInput
from rag_tuned_memory.serving.base import Chunk, Fingerprint, Generation, Request
from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.health import Health
from rag_tuned_memory.serving.held import HeldAdapters
from rag_tuned_memory.serving.local.batching import check_request
from rag_tuned_memory.serving.together import together
from rag_tuned_memory.serving.vllm.apart import Apart
from rag_tuned_memory.serving.vllm.completions import Completions, Live
from rag_tuned_memory.serving.vllm.files import read_files
from rag_tuned_memory.serving.vllm.proof import prove
from rag_tuned_memory.serving.vllm.server import VllmServer, quietly_unload


class VllmBackend:
    """Answers with a vLLM server (0.10 or newer; tested with 0.32) and the adapters that it loads while it runs.

    Prompts are rendered here, by the code that training uses, and sent as token ids; text is decoded here too. A
    request may only name an adapter that this client has loaded and proven. For one event loop; asyncio and trio.

    The server needs ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``; who can reach it can then load and
    unload adapters, so let nobody but this service.

    Args:
        url: the server, such as ``http://127.0.0.1:8000``.
        folder: the base model's folder here, for the prompts; its weights are not needed.
        model: the base model's name on the server; by default the first one that it lists.
        api_key: what the server was started with; none is sent where none is given.
        adapters_root: (folder here, the same folder as the server sees it), where these differ.
        max_lora_rank: the server's ``--max-lora-rank``, to refuse an adapter before it is sent; the server itself
            tells its limit only when it refuses.
        top_logprobs: likeliest tokens that entropy is estimated from, at most the server's ``--max-logprobs``.
        timeout: seconds that one answer may take on the server, tries and waits for further tries included.
        max_retries: further tries after a lost connection, 429 or 5xx.
        max_concurrent: most requests on the way at a time; others wait here.
        base_apart: never send base requests while adapters' are on the way, nor the other way round. A proof by greedy
            answers turns it on where the server mixes them up, as vLLM's CPU kernels do.

    Raises:
        InvalidInput: ``url`` is no http address.
        MissingExtra: the extra ``vllm`` is not installed.
        ModelNotPulled: ``folder`` holds no model.
    """

    def __init__(
        self,
        url: str,
        folder: Path | str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        adapters_root: tuple[Path | str, str] | None = None,
        max_lora_rank: int | None = None,
        top_logprobs: int = 20,
        timeout: float = 120.0,
        max_retries: int = 2,
        max_concurrent: int = 64,
        base_apart: bool = False,
    ) -> None:
        if max_concurrent < 1 or top_logprobs < 0:
            raise InvalidInput("max_concurrent must be at least 1, and top_logprobs not negative")
        self._folder = ModelFolder(folder)
        self._server = VllmServer(url, api_key, timeout=timeout, max_retries=max_retries)
        self._held: HeldAdapters[Live] = HeldAdapters()
        self._apart = Apart(on=base_apart)
        self._completions = Completions(
            self._server,
            self._folder,
            model=model,
            top_logprobs=top_logprobs,
            timeout=timeout,
            max_concurrent=max_concurrent,
            apart=self._apart,
            lost=self._held.lose,
        )
        self._root, self._max_rank = adapters_root, max_lora_rank
        self._closed = False

    @property
    def base_model(self) -> str:
        """The folder's name and a short hash of its files, as ``name@hash``."""
        return self._folder.identity

    @property
    def keeps_base_apart(self) -> bool:
        """Whether base and adapters are asked one after the other, because the server mixes them up, see ``apart``."""
        return self._apart.on

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answers in the order of the requests. The first error of any request is raised, and the rest dropped.

        ``tokens`` has every generated token, the one that ended the answer too (its text is empty).
        Log-probabilities are of the model's distribution at temperature 1; ``entropy`` is a lower bound, see
        ``answer.entropy``. ``seconds`` is of the request alone.

        Raises:
            InvalidInput, AdapterNotLoaded, PromptTooLong, BackendUnavailable, BackendError: see ``errors``.
        """
        with self._users(requests) as live:
            return await together(lambda one: self._completions.answer(*one), list(zip(requests, live, strict=True)))

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Text as it is generated, in whole characters; the last chunk carries the generation.

        Closing the iterator (``aclose``, or cancelling the task) closes the connection, and the server stops.
        """
        with self._users([request]) as [live]:
            chunks = self._completions.stream(request, live)
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                await chunks.aclose()

    async def score(self, request: Request, completions: Sequence[str]) -> list[tuple[float, ...]]:
        """Natural-log probability of each token of each completion after the request's prompt.

        Completions are plain text; no end-of-answer token is added. One without text has no tokens. The server
        computes them anew, without its prefix cache.

        Raises:
            InvalidInput, AdapterNotLoaded, PromptTooLong, BackendUnavailable, BackendError: see ``errors``.
        """
        with self._users([request]) as [live]:
            return await self._completions.scores(request, list(completions), live)

    async def load_adapter(self, name: str, path: Path, fingerprint: Fingerprint | None = None) -> None:
        """Check the files, let the server load them, and prove by the fingerprint that they answer.

        What the server has by this name from the same path (another process loaded it) is proven and used as it is.
        For what the proof is, see ``proof.prove``.

        Raises:
            InvalidInput: the name is empty, in use here, or another adapter's on the server.
            AdapterDamaged: files are missing or unreadable, here or for the server.
            AdapterError: vLLM, or this server, does not serve this kind or rank of adapter.
            CanaryMismatch: it was unloaded again, and never answered a request.
            BackendUnavailable, BackendError: see ``errors``; also where the server loads no adapters while it runs.
        """
        self._check_open()
        if not name or not name.strip():
            raise InvalidInput("an adapter needs a name")
        given, base = Path(path), self._folder.path
        files = await anyio.to_thread.run_sync(lambda: read_files(given, base, max_lora_rank=self._max_rank))
        live = Live(self._seen_there(files.path), files.sha256)
        with self._held.joining(name, live):
            await self._server.load(name, live.path, files)
            try:
                mixes = await prove(self._server, self._completions, name, live, fingerprint)
            except CanaryMismatch:
                await quietly_unload(self._server, name)
                raise
            self._apart.on = self._apart.on or not mixes

    async def unload_adapter(self, name: str) -> None:
        """Refuse new requests for the adapter at once, and unload it on the server when those on the way are done.

        Other clients of the same server lose it too: their requests raise AdapterNotLoaded.

        Raises:
            AdapterNotLoaded: no such adapter.
            BackendUnavailable, BackendError: the server may have it still; here it is forgotten.
        """
        self._check_open()
        with self._held.leaving(name) as idle:
            if idle:
                await idle.wait()
            await self._server.unload(name)

    async def adapters(self) -> list[str]:
        """Names that this client holds, sorted. Those that the server lost (it was restarted) are forgotten first.

        Raises:
            BackendUnavailable, BackendError: the server cannot be asked.
        """
        self._check_open()
        listed = (await self._server.listing()).adapters
        for name in self._held.names():
            live = self._held.value(name)
            if listed.get(name) != live.path:
                self._held.lose(name, live)
        return self._held.names()

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without a chat template. Asks nobody."""
        self._check_open()
        return await self._folder.count(texts)

    async def health(self) -> Health:
        """How the server is; raises nothing."""
        return await self._server.health()

    async def close(self) -> None:
        """Close the connections; waiting and later requests fail with BackendUnavailable. Adapters stay loaded."""
        self._closed = True
        await self._server.endpoint.close()

    @contextmanager
    def _users(self, requests: Sequence[Request]) -> Iterator[list[Live | None]]:
        """The adapter of each request, which cannot leave before the block ends; all is checked before one is sent."""
        self._check_open()
        for request in requests:
            check_request(request)
        with ExitStack() as users:
            yield [
                None if one.adapter is None else users.enter_context(self._held.using(one.adapter)) for one in requests
            ]

    def _check_open(self) -> None:
        if self._closed:
            raise BackendUnavailable("the backend was closed", place=self._server.place)

    def _seen_there(self, path: Path) -> str:
        """A folder's path as the server sees it."""
        if self._root is None:
            return str(path)
        ours, theirs = Path(self._root[0]).resolve(), self._root[1]
        if not path.is_relative_to(ours):
            raise InvalidInput(
                f"the adapter does not lie in {ours}, of which the server sees {theirs}",
                place=str(path),
                remedy="Put it there, or change adapters_root.",
            )
        return str(PurePosixPath(theirs, *path.relative_to(ours).parts))
