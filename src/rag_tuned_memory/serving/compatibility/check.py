"""The check itself: one adapter, one base model, one server."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag_tuned_memory.serving.compatibility import tgi, vllm
from rag_tuned_memory.serving.compatibility.facts import WEIGHTS_FILE, AdapterFacts, BaseFacts, Shapes
from rag_tuned_memory.serving.compatibility.peft import feature_problems
from rag_tuned_memory.serving.compatibility.problem import NAMES, Problem, Server

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_IN_BLOCK = re.compile(r"model\.layers\.\d+\.(?:self_attn|mlp)\.(?P<name>\w+)")
_MANY = 3
"""So many names are shown."""


def problems(
    adapter: Path | Mapping[str, Any] | AdapterFacts,
    base: Path | Mapping[str, Any] | BaseFacts,
    server: Server,
    *,
    max_lora_rank: int | None = None,
) -> list[Problem]:
    """Why ``server`` would not serve the adapter as it was trained; empty if it would.

    ``adapter`` is a folder that PEFT wrote, or PEFT's configuration of one that is yet to be trained; ``base`` the base
    model's folder or its configuration. From folders the weights' names and shapes are checked too. ``max_lora_rank``
    is vLLM's.

    Raises:
        AdapterDamaged, ModelNotPulled, ModelIntegrityError: a file is missing or cannot be read.
        InvalidInput: an impossible ``max_lora_rank``.
        MissingExtra: a folder was given, and the extra ``local`` is not installed.
    """
    adapter, base = AdapterFacts.of(adapter), BaseFacts.of(base)
    found = list(feature_problems(adapter.config, server))
    found += _rank_problems(adapter.config, server, max_lora_rank)
    if server == "tgi":
        found += tgi.model_problems(base)
    if adapter.shapes is None:
        found += _target_problems(adapter.config, base, server)
    else:
        found += _weight_problems(adapter, adapter.shapes, base, server)
    return found


def sentence(found: Sequence[Problem]) -> tuple[str, str]:
    """All of them as one message and one remedy, for an error."""
    return "; ".join(one.sentence for one in found), " ".join(dict.fromkeys(one.remedy for one in found))


def _target_problems(config: Mapping[str, Any], base: BaseFacts, server: Server) -> Iterator[Problem]:
    """Problems with the target modules of an adapter that has no weights yet; a pattern waits for its weights."""
    targets = config.get("target_modules")
    if server == "tgi" and isinstance(targets, Sequence) and not isinstance(targets, str):
        yield from tgi.module_problems(base, {str(name).rpartition(".")[2] for name in targets})


def _rank_problems(config: Mapping[str, Any], server: Server, max_lora_rank: int | None) -> Iterator[Problem]:
    pattern = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, Mapping) else [pattern])]
    wrong = [rank for rank in ranks if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1]
    if wrong:
        yield Problem(f"the adapter's rank is {wrong[0]!r}", "It must be a whole number from 1 on.")
    elif server == "vllm":
        yield from vllm.rank_problems(max(ranks), max_lora_rank)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two matrices of one adapted layer, ``(rank, in)`` and ``(out, rank)``."""

    a: tuple[int, ...] | None
    b: tuple[int, ...] | None


def _weight_problems(adapter: AdapterFacts, shapes: Shapes, base: BaseFacts, server: Server) -> Iterator[Problem]:
    name = NAMES[server]
    if adapter.other_weights:
        yield Problem(
            f"further weights lie beside {WEIGHTS_FILE}, which {name} may load too: {_list(adapter.other_weights)}",
            "Remove them.",
        )
    pairs, foreign = _pairs(shapes)
    if foreign:
        yield Problem(
            f"{name} does not know these weights: {_list(foreign)}", "Train only LoRA weights, and save them with PEFT."
        )
    if not pairs:
        yield Problem(
            f"the adapter changes no layer that {name} serves: it would answer as the base model", "Train it again."
        )
        return
    yield from _pair_problems(pairs, adapter.config, base, server)
    if server == "tgi":
        kinds = Counter(_kind(module) for module in pairs)
        yield from tgi.module_problems(base, kinds)
        yield from tgi.layer_problems(base, kinds)


def _pair_problems(
    pairs: Mapping[str, _Pair], config: Mapping[str, Any], base: BaseFacts, server: Server
) -> Iterator[Problem]:
    halves = [module for module, pair in pairs.items() if pair.a is None or pair.b is None]
    if halves:
        yield Problem(f"one of lora_A and lora_B is missing for {_list(halves)}", "Save the adapter again.")
    whole = {module: (pair.a, pair.b) for module, pair in pairs.items() if pair.a and pair.b}
    uneven = [module for module, (a, b) in whole.items() if a[0] != b[-1]]
    if uneven:
        yield Problem(f"lora_A and lora_B do not fit each other in {_list(uneven)}", "Save the adapter again.")
    if not config.get("rank_pattern") or server == "tgi":
        other = [module for module, (a, _) in whole.items() if a[0] != config.get("r")]
        if other:
            yield Problem(
                f"the configuration's rank is {config.get('r')}, the weights' is another in {_list(other)}",
                "Train with the same rank in every layer, and save both files together.",
            )
    yield from _fit_problems(whole, base)


def _fit_problems(whole: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], base: BaseFacts) -> Iterator[Problem]:
    """Layers that the base model does not have, or that are of another size there."""
    if base.shapes is None or any(name.endswith("qweight") for name in base.shapes):  # packed: shapes say little
        return
    layers = {module: base.shapes.get(f"{module}.weight") for module in whole}
    if missing := [module for module, layer in layers.items() if layer is None]:
        yield Problem(f"the base model has no layers {_list(missing)}", "Name the base model that it was trained on.")
    sizes = {module: (b[0], a[-1]) for module, (a, b) in whole.items()}
    if other := [module for module, layer in layers.items() if layer is not None and layer != sizes[module]]:
        yield Problem(
            f"the base model's layers are of another size in {_list(other)}",
            "Name the base model that it was trained on.",
        )


def _pairs(shapes: Shapes) -> tuple[dict[str, _Pair], list[str]]:
    """The adapted layers by their full names, and the names of tensors that are no LoRA matrices."""
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    foreign = []
    for key, shape in shapes.items():
        match = _KEY.fullmatch(key)
        if match is None or len(shape) != 2 or 0 in shape:
            foreign.append(key)
        else:
            sides.setdefault(match["module"], {})[match["side"]] = shape
    return {module: _Pair(found.get("A"), found.get("B")) for module, found in sides.items()}, foreign


def _kind(module: str) -> str:
    """``up_proj`` of ``model.layers.3.mlp.up_proj``; another layer's full name."""
    match = _IN_BLOCK.fullmatch(module)
    return match["name"] if match else module


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MANY])
    return shown if len(names) <= _MANY else f"{shown} and {len(names) - _MANY} more"
