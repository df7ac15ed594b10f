"""The base model: loading it, and one forward pass for a batch of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_tuned_memory.errors import ModelIntegrityError
from rag_tuned_memory.models import fastest_dtype, quiet_transformers, require
from rag_tuned_memory.serving.folder import check_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass
class LanguageModel:
    """A causal language model, ready for inference. Only one thread may use it."""

    lm: PreTrainedModel
    context: int
    """Most positions of prompt and answer together."""
    end_ids: frozenset[int]
    """Tokens that end an answer."""

    @classmethod
    def load(cls, folder: Path, *, device: str | None = None, dtype: str | None = None) -> LanguageModel:
        """Load weights; ``device`` and ``dtype`` default to what this machine does best.

        Raises:
            MissingExtra, ModelNotPulled, ModelIntegrityError: see ``errors``.
        """
        check_folder(folder)
        for module in ("torch", "transformers", "peft"):
            require(module)
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, GenerationConfig

        target = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = getattr(torch, dtype) if dtype else fastest_dtype(target)
        try:
            with quiet_transformers():
                lm = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, local_files_only=True)
            lm = lm.to(target).eval()
            generation = GenerationConfig.from_model_config(lm.config)
            if (folder / "generation_config.json").is_file():
                generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelIntegrityError(
                f"the model cannot be loaded: {error}", place=str(folder), remedy="Pull it again."
            ) from error
        lm.requires_grad_(False)
        # With more than one row and one kept position the input of lm_head is a strided view, and matmul then copies
        # the whole vocabulary matrix for each row: three times the time of a prefill.
        lm.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        ends = generation.eos_token_id
        ends = [ends] if isinstance(ends, int) else ends or []
        return cls(lm=lm, context=lm.config.get_text_config().max_position_embeddings, end_ids=frozenset(ends))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.lm.device
        return device


@dataclass
class PaddedBatch:
    """Rows of token ids padded on the left, so that every row's last token is in the last column.

    ``ids`` and ``mask`` are ``(rows, columns)``; ``positions`` counts each row's tokens from ``start``, the length of
    a shared prefix that lies before all of them.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: Any, *, start: int = 0) -> PaddedBatch:
        """Pad ``rows`` (none empty)."""
        import torch

        columns = max(map(len, rows))
        ids = torch.zeros(len(rows), columns, dtype=torch.long)
        mask = torch.zeros(len(rows), columns, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, columns - len(row) :] = torch.tensor(row)
            mask[index, columns - len(row) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0) + start
        return cls(ids.to(device), mask.to(device), positions.to(device))

    def next(self, tokens: torch.Tensor) -> PaddedBatch:
        """The batch of one further token a row, ``(rows,)``; the mask covers what the cache holds, too."""
        import torch

        column = tokens[:, None]
        return PaddedBatch(column, torch.cat([self.mask, torch.ones_like(column)], 1), self.positions[:, -1:] + 1)

    def keep(self, rows: torch.Tensor) -> PaddedBatch:
        """Only these rows."""
        return PaddedBatch(self.ids[rows], self.mask[rows], self.positions[rows])

    def joined(self, other: PaddedBatch) -> PaddedBatch:
        """The other's rows below these, where both are batches of one further token."""
        import torch
        from torch.nn.functional import pad

        width = max(self.mask.shape[1], other.mask.shape[1])
        masks = [pad(one.mask, (width - one.mask.shape[1], 0)) for one in (self, other)]
        return PaddedBatch(
            torch.cat([self.ids, other.ids]), torch.cat(masks), torch.cat([self.positions, other.positions])
        )

    def empty_columns(self) -> int:
        """How many columns on the left hold no row's token."""
        return int(self.mask.any(0).int().argmax())

    def without(self, columns: int) -> PaddedBatch:
        """Without so many columns on the left of what the cache holds, where this is a batch of one further token."""
        return PaddedBatch(self.ids, self.mask[:, columns:], self.positions)
