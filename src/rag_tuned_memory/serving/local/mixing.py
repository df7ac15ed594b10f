"""Rows of many adapters in one forward pass, at the price of about one.

Each layer multiplies all rows with the matrices of all adapters of the batch, put side by side, and then blots out
what is not a row's own: two products a layer, however many adapters there are. PEFT's own mixed batch computes each
adapter for itself, which on a processor costs more than the base model when eight adapters share a batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

_KEPT = 4
"""Sets of adapters whose stacked weights are kept."""


@dataclass(frozen=True)
class _Stack:
    """The adapters of one layer side by side: ``down`` ``(ranks, inputs)``, ``up`` ``(outputs, ranks)``, scaled."""

    down: torch.Tensor
    up: torch.Tensor
    owners: tuple[int, ...]
    """The slot of each rank."""


def peft_name(slot: int) -> str:
    """PEFT's name for a slot. A bare number would be taken for a layer's number in the weights' keys."""
    return f"slot{slot}"


class Mixer:
    """Adds to each row of a layer's output what the row's adapter adds. PEFT's own layers must be disabled.

    Only the thread that runs the model may use it.
    """

    def __init__(self) -> None:
        self._hooked: set[LoraLayer] = set()
        self._stacks: OrderedDict[tuple[int, ...], dict[LoraLayer, _Stack | None]] = OrderedDict()
        self._rows: tuple[int | None, ...] = ()
        self._used: tuple[int, ...] = ()
        self._foreign: dict[tuple[int, ...], torch.Tensor] = {}

    def attach(self, lm: PreTrainedModel) -> None:
        """Take charge of the layers that carry adapters; to be called again when there may be more of them."""
        from peft.tuners.lora import LoraLayer

        for module in lm.modules():
            if isinstance(module, LoraLayer) and module not in self._hooked:
                self._hooked.add(module)
                module.register_forward_hook(self._add)

    def forget(self, slot: int) -> None:
        """Let go of a slot's weights."""
        for used in [used for used in self._stacks if slot in used]:
            del self._stacks[used]

    @contextmanager
    def rows(self, slots: Sequence[int | None]) -> Iterator[None]:
        """Within it, row ``i`` of a forward pass is computed with the adapter ``slots[i]``, None for none."""
        self._rows = tuple(slots)
        self._used = tuple(sorted({slot for slot in slots if slot is not None}))
        if self._used:
            self._stacks.setdefault(self._used, {})
            self._stacks.move_to_end(self._used)
        while len(self._stacks) > _KEPT:
            self._stacks.popitem(last=False)
        try:
            yield
        finally:
            self._rows, self._used, self._foreign = (), (), {}

    def _add(self, layer: LoraLayer, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        if not self._used:
            return None
        stacks = self._stacks[self._used]
        if layer not in stacks:
            stacks[layer] = _stacked(layer, self._used)
        stack = stacks[layer]
        if stack is None:
            return None
        from torch.nn.functional import linear

        hidden = linear(inputs[0].to(stack.down.dtype), stack.down)
        if len(set(self._rows)) > 1:
            # Filled, not multiplied by zero: what overflows in one row's adapter must not become NaN in the others.
            hidden = hidden.masked_fill(self._foreign_to(stack.owners, hidden.device), 0.0)
        return (output + linear(hidden, stack.up)).to(output.dtype)

    def _foreign_to(self, owners: tuple[int, ...], device: Any) -> torch.Tensor:
        """``(rows, 1, ranks)``, true where the rank is not of the row's adapter; the same for most layers."""
        if owners not in self._foreign:
            import torch

            mine = torch.tensor([-1 if slot is None else slot for slot in self._rows])
            self._foreign[owners] = (mine[:, None] != torch.tensor(owners)[None])[:, None].to(device)
        return self._foreign[owners]


def _stacked(layer: LoraLayer, slots: Sequence[int]) -> _Stack | None:
    """The layer's matrices of these adapters; None where none of them has this layer."""
    import torch

    having = [slot for slot in slots if peft_name(slot) in layer.lora_A]
    if not having:
        return None
    downs = [layer.lora_A[peft_name(slot)].weight for slot in having]
    ups = [layer.lora_B[peft_name(slot)].weight * layer.scaling[peft_name(slot)] for slot in having]
    owners = tuple(slot for slot, down in zip(having, downs, strict=True) for _ in range(down.shape[0]))
    return _Stack(torch.cat(downs), torch.cat(ups, 1), owners) if len(having) > 1 else _Stack(downs[0], ups[0], owners)
