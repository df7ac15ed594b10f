"""What is known of an adapter and of its base model: their configurations, and the shapes of their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag_tuned_memory.errors import AdapterDamaged, ModelIntegrityError, RagTunedMemoryError
from rag_tuned_memory.models import import_extra
from rag_tuned_memory.serving.folder import check_folder

Shapes = Mapping[str, tuple[int, ...]]
"""Of each tensor, by its name."""
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """An adapter: PEFT's configuration, and its tensors' shapes where there are weights already.

    ``other_weights`` are files of weights beside the right one.
    """

    config: Mapping[str, Any]
    shapes: Shapes | None = None
    other_weights: tuple[str, ...] = ()

    @classmethod
    def of(cls, adapter: Path | Mapping[str, Any] | AdapterFacts) -> AdapterFacts:
        """Read a folder, or take a configuration for an adapter that is yet to be trained.

        Raises:
            AdapterDamaged: a file is missing, cut short or no adapter's.
            MissingExtra: the extra ``local`` is not installed.
        """
        if isinstance(adapter, AdapterFacts):
            return adapter
        if isinstance(adapter, Mapping):
            return cls(adapter)
        config = _json(adapter / CONFIG_FILE, AdapterDamaged)
        others = {path.name for pattern in ("*.safetensors", "*.bin", "*.pt") for path in adapter.glob(pattern)}
        return cls(config, _shapes(adapter / WEIGHTS_FILE, AdapterDamaged), tuple(sorted(others - {WEIGHTS_FILE})))


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """A base model: its configuration, and its tensors' shapes where the weights are at hand."""

    config: Mapping[str, Any]
    shapes: Shapes | None = None

    @classmethod
    def of(cls, base: Path | Mapping[str, Any] | BaseFacts) -> BaseFacts:
        """Read a folder (of the weights, only the headers), or take a configuration.

        Raises:
            ModelNotPulled: there is no model.
            ModelIntegrityError: a file cannot be read.
            MissingExtra: the extra ``local`` is not installed.
        """
        if isinstance(base, BaseFacts):
            return base
        if isinstance(base, Mapping):
            return cls(base)
        check_folder(base)
        shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(base.glob("*.safetensors")):
            shapes |= _shapes(file, ModelIntegrityError)
        return cls(_json(base / "config.json", ModelIntegrityError), shapes or None)

    @property
    def model_type(self) -> str:
        """As transformers names it, such as ``llama``."""
        return str(self.config.get("model_type", ""))

    @property
    def layers(self) -> int | None:
        """Number of blocks, where the configuration has it."""
        found = self.config.get("num_hidden_layers")
        return found if isinstance(found, int) else None


def _json(path: Path, kind: type[RagTunedMemoryError]) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise kind(f"the file cannot be read ({error.strerror})", place=str(path)) from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise kind(f"the file is no valid JSON: {error}", place=str(path)) from error
    if not isinstance(found, dict):
        raise kind("the file holds no JSON object", place=str(path))
    return found


def _shapes(path: Path, kind: type[RagTunedMemoryError]) -> dict[str, tuple[int, ...]]:
    safetensors = import_extra("safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise kind(f"the weights cannot be read ({reason})", place=str(path)) from error
