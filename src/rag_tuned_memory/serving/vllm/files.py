"""An adapter's files, checked before a vLLM server is asked to load them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag_tuned_memory.errors import AdapterDamaged, AdapterError

HIGHEST_RANK = 512
"""What ``--max-lora-rank`` can be set to at most."""
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_REFUSED = ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""The named initialisations that leave the base model's weights as they are (vLLM 0.32, ``lora/peft_helper.py``)."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """What is known of an adapter's folder."""

    path: Path
    """Absolute, without symbolic links: so it is the same for every process that names it to the server."""
    rank: int
    """The highest of any module."""
    sha256: str
    """Of configuration and weights."""


def read_files(folder: Path, *, max_rank: int | None = None) -> AdapterFiles:
    """Check an adapter for vLLM; ``max_rank`` is the server's ``--max-lora-rank`` where it is known. Blocking.

    Raises:
        AdapterDamaged: a file is missing or unreadable.
        AdapterError: vLLM does not serve this kind of adapter, or this rank; says what to change.
    """
    path = folder.resolve()
    config, digest = _config(path), hashlib.sha256()
    for name in (_CONFIG, _WEIGHTS):
        try:
            with (path / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise AdapterDamaged(f"{name} cannot be read ({error.strerror})", place=str(path)) from error
    _check_kind(config, path)
    rank = _rank(config, path)
    check_rank(rank, max_rank or HIGHEST_RANK, path)
    return AdapterFiles(path, rank, digest.hexdigest())


def check_rank(rank: int, highest: int, path: Path) -> None:
    """Raise AdapterError where ``rank`` is more than the server takes."""
    if rank > highest:
        started = f"Start vLLM with --max-lora-rank {_step(rank)}, or train" if rank <= HIGHEST_RANK else "Train"
        raise AdapterError(
            f"its rank {rank} is higher than the server's limit of {highest}",
            place=str(path),
            remedy=f"{started} with a rank of at most {highest}.",
        )


def _step(rank: int) -> int:
    """The lowest value that ``--max-lora-rank`` allows for a rank."""
    return next(one for one in (1, 8, 16, 32, 64, 128, 256, 320, HIGHEST_RANK) if one >= rank)


def _config(path: Path) -> dict[str, Any]:
    place = str(path / _CONFIG)
    try:
        config = json.loads((path / _CONFIG).read_bytes())
    except FileNotFoundError:
        raise AdapterDamaged(f"the adapter has no {_CONFIG}", place=str(path)) from None
    except (OSError, ValueError) as error:
        raise AdapterDamaged(f"the configuration cannot be read: {error}", place=place) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterDamaged("peft_type must be LORA", place=place)
    return config


def _check_kind(config: dict[str, Any], path: Path) -> None:
    refused = [name for name in _REFUSED if config.get(name)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or any(one not in ("classifier", "score") for one in saved):
        refused.append("modules_to_save")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _PLAIN_INITS:
        refused.append(f"init_lora_weights={start}")
    if refused:
        raise AdapterError(
            f"vLLM does not serve adapters with {', '.join(refused)}",
            place=str(path / _CONFIG),
            remedy="Train a plain LoRA.",
        )


def _rank(config: dict[str, Any], path: Path) -> int:
    pattern = config.get("rank_pattern") or {}
    given = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else [None])]
    ranks = [one for one in given if isinstance(one, int) and one > 0]
    if len(ranks) < len(given):
        raise AdapterDamaged("r and rank_pattern must hold positive ranks", place=str(path / _CONFIG))
    return max(ranks)
