"""What Text Generation Inference serves: which layers of which models.

Read in TGI 3.3.7: server/text_generation_server/utils/adapter.py, models/__init__.py and models/custom_modeling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from rag_tuned_memory.serving.compatibility.facts import BaseFacts
from rag_tuned_memory.serving.compatibility.problem import Problem

_LLAMA: Final = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})

SERVED_MODULES: Final[Mapping[str, frozenset[str]]] = {
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "granite": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi3": frozenset({"qkv_proj", "o_proj", "down_proj"}),
    "qwen2": frozenset({"o_proj", "down_proj"}),
    "starcoder2": frozenset({"o_proj", "c_proj", "down_proj"}),
}
"""The layers that adapters change, by ``model_type``; what else an adapter holds is left out in silence.

Qwen2's and Starcoder2's other layers look for their weights under full names (``model.layers.0.mlp.up_proj``) where the
loader keeps them under short ones (``up_proj``), and find none. Phi-3's fused ``gate_up_proj`` is not among the layers
that are loaded. Models that are not named here end the server when it starts with an adapter.
"""

_SPLITS_BY_HIDDEN_SIZE: Final = frozenset({"granite", "llama", "phi3", "qwen2", "starcoder2"})
"""Models whose heads TGI takes to be hidden_size / num_attention_heads wide, whatever ``head_dim`` says."""


def model_problems(base: BaseFacts) -> Iterator[Problem]:
    """Problems with the base model itself."""
    if base.model_type not in SERVED_MODULES:
        yield Problem(
            f"TGI serves no adapters for models of the type {base.model_type!r}, only for "
            + ", ".join(sorted(SERVED_MODULES)),
            "Choose such a base model, or serve with vLLM.",
        )
    elif base.model_type in _SPLITS_BY_HIDDEN_SIZE and _other_heads(base):
        yield Problem("TGI does not read this model's head_dim, and cannot start", "Serve with vLLM.")


def module_problems(base: BaseFacts, modules: Collection[str]) -> Iterator[Problem]:
    """Problems with the names of the layers that an adapter changes, such as ``up_proj``."""
    served = SERVED_MODULES.get(base.model_type, frozenset(modules))
    if left_out := sorted(set(modules) - served):
        yield Problem(
            f"TGI would leave out, in silence, what the adapter changes in {', '.join(left_out)}: of "
            f"{base.model_type} models it serves adapters for {', '.join(sorted(served))} only",
            "Serve with vLLM, or adapt only these layers.",
        )


def layer_problems(base: BaseFacts, modules: Counter[str]) -> Iterator[Problem]:
    """Problems with how often each kind of layer is adapted; TGI drops a kind that is missing in any block."""
    for name, count in sorted(modules.items()):
        if base.layers is not None and count != base.layers:
            yield Problem(
                f"TGI would leave out, in silence, what the adapter changes in {name}: {count} of {base.layers} blocks "
                "have weights for it",
                "Adapt the same layers in every block.",
            )


def _other_heads(base: BaseFacts) -> bool:
    head, hidden, heads = (base.config.get(name) for name in ("head_dim", "hidden_size", "num_attention_heads"))
    return isinstance(head, int) and isinstance(hidden, int) and isinstance(heads, int) and head * heads != hidden
