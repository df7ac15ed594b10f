"""The shape of the adapter that a recipe asks for, on a given base model, and whether servers could serve it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.errors import InvalidRecipe, ModelIntegrityError
from rag_tuned_memory.models import quiet_transformers, require
from rag_tuned_memory.serving.compatibility import Server, problems, sentence


def lora_config(model: Any, recipe: Recipe) -> Any:
    """PEFT's ``LoraConfig`` for a transformers model.

    Raises:
        InvalidRecipe: the model has no such layers.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=_target_modules(model, recipe.lora.layers),
        task_type="CAUSAL_LM",
    )


def planned_config(base: Path, recipe: Recipe) -> dict[str, Any]:
    """The ``adapter_config.json`` that training would write, found without reading weights. Blocking.

    Raises:
        InvalidRecipe: as ``lora_config``.
        ModelIntegrityError: the base model's config.json cannot be understood.
        MissingExtra: the extra ``local`` is not installed.
    """
    for module in ("torch", "transformers", "peft"):
        require(module)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with quiet_transformers(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ModelIntegrityError(f"the base model cannot be understood: {error}", place=str(base)) from error
    config = lora_config(model, recipe).to_dict()
    return {**config, "target_modules": sorted(config["target_modules"])}


def check_servable(base: Path, recipe: Recipe, servers: Sequence[Server], *, max_lora_rank: int | None = None) -> None:
    """Refuse to train what a server could not serve. Blocking.

    Raises:
        InvalidRecipe: naming the servers, the reasons and what to change.
        InvalidInput: vLLM cannot be started with ``max_lora_rank``.
    """
    if not servers:
        return
    planned = planned_config(base, recipe)
    for server in servers:
        if found := problems(planned, base, server, max_lora_rank=max_lora_rank):
            message, remedy = sentence(found)
            raise InvalidRecipe(message, place=f"RTM_SERVE_FOR={server}", remedy=remedy)


def _target_modules(model: Any, layers: Literal["mlp", "all"]) -> list[str]:
    """Names of the linear layers to adapt, never the output: PEFT's "all-linear" would write each by its full path."""
    import torch

    output = model.get_output_embeddings()
    linear = [
        path.split(".")
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output
    ]
    names = sorted({path[-1] for path in linear if layers == "all" or "mlp" in path})
    if not names:
        raise InvalidRecipe(
            "the base model has no layers named mlp", place="recipe.lora.layers", remedy="Adapt all of them: 'all'."
        )
    return names
