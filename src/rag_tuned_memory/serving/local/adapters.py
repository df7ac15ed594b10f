"""LoRA adapters on the base model: checking their files, adding, selecting and removing them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_tuned_memory.errors import AdapterDamaged
from rag_tuned_memory.models import quiet_transformers
from rag_tuned_memory.serving.local.mixing import Mixer, peft_name

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."


def check_files(lm: PreTrainedModel, folder: Path) -> None:
    """Read an adapter's files and hold them against the base model; touches nothing.

    Raises:
        AdapterDamaged: a file is missing or unreadable, the adapter is of a kind that cannot be mixed in a batch, or
            a tensor has no module to go to, another shape than its module needs, no partner, or is not finite.
    """
    config = _read_config(folder)
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise AdapterDamaged("the adapter has no adapter_model.safetensors", place=str(folder))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError) as error:
        raise AdapterDamaged(f"the weights cannot be read: {error}", place=str(path)) from error
    if not tensors:
        raise AdapterDamaged("the file holds no weights", place=str(path))
    modules = _base_linears(lm)
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, tensors, modules, _rank_patterned(config), str(path))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise AdapterDamaged("the adapter has no adapter_config.json", place=str(folder)) from None
    except (OSError, ValueError) as error:
        raise AdapterDamaged(f"the configuration cannot be read: {error}", place=str(path)) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterDamaged("peft_type must be LORA", place=str(path))
    unmixable = [f for f in ("use_dora", "modules_to_save", "lora_bias", "alora_invocation_tokens") if config.get(f)]
    if config.get("bias", "none") != "none":
        unmixable.append("bias")
    if unmixable:
        raise AdapterDamaged(
            f"{', '.join(unmixable)} cannot be served: only plain LoRA weights mix in a batch", place=str(path)
        )
    return config


def _rank_patterned(config: dict[str, Any]) -> int | None:
    """The one rank of all modules, None where modules have their own."""
    return None if config.get("rank_pattern") else config.get("r")


def _base_linears(lm: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """``{module name: (outputs, inputs)}`` of the base model, also when it carries adapters already."""
    import torch

    shapes = {}
    for name, module in lm.named_modules():
        if isinstance(module, torch.nn.Linear) and ".lora_" not in name:
            shapes[name.removesuffix(".base_layer")] = (module.out_features, module.in_features)
    return shapes


def _check_tensor(
    name: str, tensor: Any, tensors: dict[str, Any], modules: dict[str, tuple[int, int]], rank: int | None, place: str
) -> None:
    module, _, side = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
    if not name.startswith(_PREFIX) or side not in ("A", "B") or module not in modules:
        raise AdapterDamaged(f"the base model has no place for the tensor {name}", place=place)
    partner = f"{_PREFIX}{module}.lora_{'B' if side == 'A' else 'A'}.weight"
    if partner not in tensors:
        raise AdapterDamaged(f"{name} has no partner {partner}", place=place)
    outputs, inputs = modules[module]
    own_rank = rank or tensors[f"{_PREFIX}{module}.lora_A.weight"].shape[0]
    expected = (own_rank, inputs) if side == "A" else (outputs, own_rank)
    if tuple(tensor.shape) != expected:
        raise AdapterDamaged(
            f"{name} has the shape {tuple(tensor.shape)}, the base model needs {expected}",
            place=place,
            remedy="It was trained for another base model, or its configuration was changed.",
        )
    if not bool(tensor.isfinite().all()):
        raise AdapterDamaged(f"{name} holds NaN or infinity", place=place)


class AdapterSlots:
    """The adapters that the model carries, under numbers that are never used twice.

    PEFT's own names allow no dots, and a cache that is keyed by a name can be stale when the name is loaded again; a
    slot has neither problem. Slot None is the base model.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        self._lm = lm
        self._peft: PeftModel | None = None
        self._count = 0
        self._mixer = Mixer()

    def add(self, folder: Path) -> int:
        """Load checked files into a new slot.

        Raises:
            AdapterDamaged: what ``check_files`` says, or PEFT refuses the files.
        """
        check_files(self._lm, folder)
        slot, self._count = self._count, self._count + 1
        try:
            with quiet_transformers():
                self._load(folder, slot)
        except Exception as error:
            if self._peft is not None and peft_name(slot) in self._peft.peft_config:
                self.remove(slot)
            if isinstance(error, AdapterDamaged):
                raise
            raise AdapterDamaged(f"PEFT cannot load it: {error}", place=str(folder)) from error
        self._settle()
        return slot

    def _load(self, folder: Path, slot: int) -> None:
        from peft import LoraConfig, PeftModel

        if self._peft is None:
            config = LoraConfig.from_pretrained(folder)
            config.inference_mode = True
            self._peft = PeftModel(self._lm, config, adapter_name=peft_name(slot))
        result = self._peft.load_adapter(folder, adapter_name=peft_name(slot), torch_device=str(self._lm.device))
        self._peft.eval()
        if result.missing_keys:
            first, count = result.missing_keys[0], len(result.missing_keys)
            raise AdapterDamaged(
                f"the file lacks {count} tensors of its configuration, first {first}", place=str(folder)
            )

    def remove(self, slot: int) -> None:
        """Free the slot's weights."""
        assert self._peft is not None
        self._mixer.forget(slot)
        with quiet_transformers():
            # PEFT warns which adapter it makes active instead; here none is, the mixer takes those that a row needs.
            self._peft.delete_adapter(peft_name(slot))
        self._settle()

    def _settle(self) -> None:
        """PEFT's layers compute the base model only, and the mixer knows all of them."""
        assert self._peft is not None
        self._peft.base_model.disable_adapter_layers()
        self._mixer.attach(self._lm)

    def forward(self, slots: Sequence[int | None], **inputs: Any) -> Any:
        """The model's output where row ``i`` is computed with the adapter ``slots[i]``."""
        with self._mixer.rows(slots):
            return self._lm(**inputs)
