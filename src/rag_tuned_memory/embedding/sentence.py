"""Vectors of a sentence encoder such as all-MiniLM-L6-v2, by plain transformers: mean pooling, then unit length.

Pooling and normalisation are those of the model's card (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import anyio.to_thread
import numpy as np

from rag_tuned_memory.embedding.base import EmbedderIdentity, OnProgress, Vectors, checked, checked_texts
from rag_tuned_memory.errors import InvalidInput, ModelError
from rag_tuned_memory.models import import_extra, in_own_thread, quiet_transformers, read_info

MAX_TOKENS = 256
"""Longer texts are cut there, as the model was trained."""
# About what MAX_TOKENS of English take.
_MOST_CHARACTERS = 1024


class SentenceEmbedder:
    """An ``Embedder`` of the model in ``folder``.

    The model is loaded by the first ``embed``. Texts of like length share a batch of at most ``batch_size`` texts and
    ``batch_characters`` characters, padding included: on a CPU small batches that stay in its cache are the fastest
    (``benchmarks/embedding``); on a GPU raise both. The lock is held for one batch at a time, so that a query need not
    wait for a long import. ``device`` is torch's (default: CPU). Safe to use from several tasks and threads.
    """

    def __init__(
        self, folder: Path, *, batch_size: int = 64, batch_characters: int = 2000, device: str | None = None
    ) -> None:
        for name, value in (("batch_size", batch_size), ("batch_characters", batch_characters)):
            if value < 1:
                raise InvalidInput(f"{name} is {value}, must be 1 or more")
        self.folder = Path(folder)
        self.batch_size = batch_size
        self.batch_characters = batch_characters
        self.device = device or "cpu"
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None

    @cached_property
    def identity(self) -> EmbedderIdentity:
        """Read from the folder, without loading the model. Raises ModelNotPulled, ModelIntegrityError or ModelError."""
        info = read_info(self.folder)
        try:
            dimension = json.loads((self.folder / "config.json").read_bytes())["hidden_size"]
        except (OSError, ValueError, KeyError) as error:
            raise ModelError("config.json names no hidden_size", place=str(self.folder)) from error
        return EmbedderIdentity(model=info.name, revision=info.revision, dimension=dimension)

    async def embed(
        self,
        texts: Sequence[str],
        *,
        kind: Literal["passage", "query"] = "passage",
        on_progress: OnProgress | None = None,
    ) -> Vectors:
        """See ``Embedder``; passages and queries are embedded alike. ``on_progress`` gets texts done and in all.

        Raises:
            InvalidInput: what is given is no valid text; the message names which.
            MissingExtra, ModelError: torch is not installed, or the model cannot be loaded.
        """
        texts = checked_texts(texts)
        dimension = await anyio.to_thread.run_sync(lambda: self.identity.dimension)
        vectors = np.empty((len(texts), dimension), dtype=np.float32)
        done = 0
        for batch in self._batches(texts):
            work = partial(self._embed_batch, [texts[index] for index in batch])
            vectors[batch] = await in_own_thread(work)
            done += len(batch)
            if on_progress:
                on_progress(done, len(texts))
        return checked(vectors, rows=len(texts), dimension=dimension)

    def _batches(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Indices of ``texts``, the longest first."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
        start = 0
        while start < len(order):
            longest = min(max(1, len(texts[order[start]])), _MOST_CHARACTERS)
            size = max(1, min(self.batch_size, self.batch_characters // longest))
            yield order[start : start + size]
            start += size

    def _embed_batch(self, texts: list[str]) -> Any:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            tokenizer, model = self._loaded
            torch = import_extra("torch")
            inputs = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            inputs = inputs.to(self.device)
            with torch.inference_mode():
                states = model(**inputs).last_hidden_state
                mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
                mean = (states * mask).sum(1) / mask.sum(1)
                return torch.nn.functional.normalize(mean.float(), dim=1).cpu().numpy()

    def _load(self) -> tuple[Any, Any]:
        import_extra("torch")
        transformers = import_extra("transformers")
        try:
            with quiet_transformers():
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
                model = transformers.AutoModel.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:
            # transformers, tokenizers and safetensors each raise errors of their own.
            raise ModelError(f"cannot be loaded: {error}", place=str(self.folder)) from error
        return tokenizer, model.to(self.device).eval()
