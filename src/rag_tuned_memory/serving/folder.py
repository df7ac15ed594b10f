"""The base model's folder: which model it holds, and its tokenizer, which clients of servers need too."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from rag_tuned_memory.errors import ModelIntegrityError, ModelNotPulled
from rag_tuned_memory.models import quiet_transformers, read_info, require
from rag_tuned_memory.models.folder import INFO_FILE
from rag_tuned_memory.serving.base import Message
from rag_tuned_memory.serving.chat import encode, render, render_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE = 1 << 20


class ModelFolder:
    """A base model's folder as transformers saves it. The tokenizer is loaded when first needed, in a worker thread.

    Safe to use from several threads and event loops.

    Raises:
        ModelNotPulled: ``path`` holds no model.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        check_folder(self.path)
        self._lock = threading.Lock()
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @cached_property
    def identity(self) -> str:
        """The folder's name and a short hash of its files, as ``name@hash``."""
        return identity(self.path)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer. Blocking. Raises MissingExtra or ModelIntegrityError."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = load_tokenizer(self.path)
            return self._tokenizer

    async def count(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without a chat template."""
        given = list(texts)
        return await anyio.to_thread.run_sync(lambda: [len(encode(self.tokenizer(), text)) for text in given])

    async def ids(self, messages: Sequence[Message]) -> list[int]:
        """A prompt as token ids, see ``chat.render``. Raises InvalidInput."""
        return await anyio.to_thread.run_sync(lambda: render(self.tokenizer(), messages))

    async def text(self, messages: Sequence[Message]) -> str:
        """A prompt as text, see ``chat.render_text``. Raises InvalidInput."""
        return await anyio.to_thread.run_sync(lambda: render_text(self.tokenizer(), messages))


def identity(folder: Path) -> str:
    """The model's name and a short hash that tells two versions apart, as ``name@hash``.

    A pulled model's hash is its revision. Of another folder it covers configuration, tokenizer, and size and first
    MiB (shapes and first weights) of each weight file: enough to notice another model without reading gigabytes.
    """
    if (folder / INFO_FILE).is_file():
        info = read_info(folder)
        return f"{info.name}@{info.revision[:12]}"
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in {".json", ".jinja", ".safetensors"}):
        with path.open("rb") as file:
            digest.update(f"{path.name}:{path.stat().st_size}:".encode())
            digest.update(file.read(_SAMPLE))
    return f"{folder.resolve().name}@{digest.hexdigest()[:12]}"


def check_folder(folder: Path) -> None:
    """Raise ModelNotPulled unless ``folder`` holds a model."""
    if not (folder / "config.json").is_file():
        raise ModelNotPulled(
            "no model here: config.json is missing",
            place=str(folder),
            remedy="Run 'rtm pull MODEL', or name a folder that transformers can load.",
        )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder.

    Raises:
        MissingExtra, ModelNotPulled, ModelIntegrityError: see ``errors``.
    """
    check_folder(folder)
    require("transformers")
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelIntegrityError(f"the tokenizer cannot be loaded: {error}", place=str(folder)) from error
