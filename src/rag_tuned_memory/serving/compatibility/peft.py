"""PEFT's features, one by one: which of them a server computes as PEFT does.

Read in TGI 3.3.7 (server/text_generation_server/adapters/lora.py) and vLLM 0.32 (vllm/lora/peft_helper.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rag_tuned_memory.serving.compatibility.problem import NAMES, Problem, Server

HARMLESS: Final = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules", "inference_mode"),
        *("layers_pattern", "lora_alpha", "lora_dropout", "megatron_config", "megatron_core", "peft_type"),
        *("peft_version", "qalora_group_size", "r", "revision", "runtime_config", "target_modules", "task_type"),
        *("use_rslora", "init_lora_weights", "corda_config", "eva_config", "loftq_config", "lora_ga_config"),
    }
)
"""Fields that do not change what a saved adapter computes, or that are looked at elsewhere. Whatever else is set, now
or in a later PEFT, is a problem until somebody has looked whether the servers know it."""

SERVED: Final[Mapping[Server, frozenset[str]]] = {
    "tgi": frozenset(),
    "vllm": frozenset({"rank_pattern", "alpha_pattern", "layers_to_transform"}),
}
"""Further fields that a server computes as PEFT does."""

PLAIN_INITS: Final = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""Inits that leave the base model's weights alone; PiSSA, OLoRA, CorDA and LoftQ change them, and servers do not."""

_REMEDIES: Final = {
    "use_dora": "Train without DoRA.",
    "bias": 'Train with bias="none".',
    "lora_bias": "Train without lora_bias.",
    "modules_to_save": "Train only LoRA weights.",
    "rank_pattern": "Train with the same rank in every layer.",
    "alpha_pattern": "Train with the same alpha in every layer.",
    "layers_to_transform": "Adapt the same layers in every block.",
    "trainable_token_indices": "Train only LoRA weights.",
}


def feature_problems(config: Mapping[str, Any], server: Server) -> Iterator[Problem]:
    """Problems with an adapter's configuration, apart from rank and target modules."""
    if config.get("peft_type") != "LORA":
        yield Problem(f"{NAMES[server]} serves LoRA, not PEFT's {config.get('peft_type')!r}", "Train a LoRA.")
    for field, value in sorted(config.items()):
        if field in HARMLESS or field in SERVED[server] or _unset(field, value):
            continue
        yield Problem(
            f"{NAMES[server]} does not serve PEFT's {field} (here {_short(value)})",
            _REMEDIES.get(field, f"Train without {field}."),
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        yield Problem(
            f"{NAMES[server]} serves the plain base model, which the init {init!r} has changed",
            "Save the adapter with PEFT's path_initial_model_for_weight_conversion.",
        )


def _unset(field: str, value: Any) -> bool:
    """Whether a field has no effect; a layer's number 0 has one."""
    empty = isinstance(value, (str, Mapping, Sequence)) and not value
    return value is None or value is False or empty or (field, value) == ("bias", "none")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
