"""An adapter's files, checked before a vLLM server is asked to load them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from rag_tuned_memory.errors import AdapterDamaged, AdapterError
from rag_tuned_memory.serving.compatibility import AdapterFacts, problems, sentence
from rag_tuned_memory.serving.compatibility.facts import CONFIG_FILE, WEIGHTS_FILE


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """What is known of an adapter's folder."""

    path: Path
    """Absolute, without symbolic links: so it is the same for every process that names it to the server."""
    rank: int
    """The highest of any module."""
    sha256: str
    """Of configuration and weights."""


def read_files(folder: Path, base: Path, *, max_lora_rank: int | None = None) -> AdapterFiles:
    """Check an adapter of the model in ``base`` for vLLM. Blocking. ``max_lora_rank`` is the server's, where known.

    Raises:
        AdapterDamaged: a file is missing or unreadable.
        AdapterError: vLLM does not serve this adapter as it was trained; says what to change.
        InvalidInput: an impossible ``max_lora_rank``.
    """
    path = folder.resolve()
    facts, digest = AdapterFacts.of(path), hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            with (path / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise AdapterDamaged(f"the file cannot be read ({error.strerror})", place=str(path / name)) from error
    if found := problems(facts, base, "vllm", max_lora_rank=max_lora_rank):
        message, remedy = sentence(found)
        raise AdapterError(message, place=str(path), remedy=remedy)
    pattern = facts.config.get("rank_pattern") or {}
    return AdapterFiles(path, max([facts.config["r"], *pattern.values()]), digest.hexdigest())
