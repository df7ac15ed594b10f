"""What servers cannot serve is named before it is trained or exported."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.errors import AdapterDamaged, InvalidInput, ModelIntegrityError, ModelNotPulled
from rag_tuned_memory.serving.compatibility import (
    MAX_LORA_RANKS,
    SERVERS,
    AdapterFacts,
    BaseFacts,
    Server,
    least_max_lora_rank,
    path_problems,
    problems,
    sentence,
)
from rag_tuned_memory.serving.compatibility.tgi import SERVED_MODULES

LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "bias": "none",
    "target_modules": ["up_proj", "down_proj"],
    "init_lora_weights": True,
    "use_rslora": False,
    "rank_pattern": {},
    "modules_to_save": None,
    "layers_to_transform": None,
}
SIZES = {"up_proj": (16, 8), "down_proj": (8, 16)}
"""Of the layers, ``(out, in)``."""


def weights(layers: int = 2, rank: int = 4) -> dict[str, tuple[int, ...]]:
    found = {}
    for layer in range(layers):
        for name, (out, size) in SIZES.items():
            prefix = f"base_model.model.model.layers.{layer}.mlp.{name}"
            found[f"{prefix}.lora_A.weight"] = (rank, size)
            found[f"{prefix}.lora_B.weight"] = (out, rank)
    return found


BASE = BaseFacts(LLAMA, {f"model.layers.{n}.mlp.{name}.weight": size for n in range(2) for name, size in SIZES.items()})


def told(config: Mapping[str, Any], server: Server, shapes: Mapping[str, tuple[int, ...]] | None = None) -> str:
    return sentence(problems(AdapterFacts(config, shapes), BASE, server))[0]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("shapes", [None, weights()])
def test_a_plain_adapter_is_served(server: Server, shapes: Any) -> None:
    assert told(PLAIN, server, shapes) == ""
    assert told({**PLAIN, "use_rslora": True, "init_lora_weights": "gaussian"}, server, shapes) == ""


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1]),
        ("layer_replication", [[0, 1]]),
        ("alora_invocation_tokens", [5]),
        ("use_qalora", True),
        ("fan_in_fan_out", True),
        ("target_parameters", ["experts"]),
        ("a_feature_of_a_later_peft", {"on": 1}),
    ],
)
def test_a_feature_that_neither_serves_is_named_with_its_remedy(server: Server, field: str, value: Any) -> None:
    [found] = problems({**PLAIN, field: value}, LLAMA, server)
    assert f"does not serve PEFT's {field}" in found.sentence
    assert found.remedy


@pytest.mark.parametrize(
    ("field", "value"),
    [("rank_pattern", {"up_proj": 8}), ("alpha_pattern", {"up_proj": 8}), ("layers_to_transform", [0])],
)
def test_some_features_only_vllm_serves(field: str, value: Any) -> None:
    assert field in told({**PLAIN, field: value}, "tgi")
    assert told({**PLAIN, field: value}, "vllm") == ""


def test_layer_0_alone_is_a_choice_of_layers_too() -> None:
    assert "layers_to_transform" in told({**PLAIN, "layers_to_transform": 0}, "tgi")


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "PiSSA", "corda", "loftq", "later"])
def test_inits_that_change_the_base_model_are_refused(server: Server, init: str) -> None:
    [found] = problems({**PLAIN, "init_lora_weights": init}, LLAMA, server)
    assert init in found.sentence
    assert "path_initial_model_for_weight_conversion" in found.remedy


@pytest.mark.parametrize("server", SERVERS)
def test_another_method_than_lora(server: Server) -> None:
    assert "'IA3'" in told({**PLAIN, "peft_type": "IA3"}, server)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("rank", [0, -1, None, "8", True])
def test_a_rank_that_is_none(server: Server, rank: Any) -> None:
    assert "rank is" in told({**PLAIN, "r": rank}, server)


@pytest.mark.parametrize(("rank", "least"), [(1, 1), (2, 8), (16, 16), (17, 32), (200, 256), (512, 512), (513, None)])
def test_the_least_rank_to_start_vllm_with(rank: int, least: int | None) -> None:
    assert least_max_lora_rank(rank) == least


def test_vllm_refuses_ranks_above_its_limit() -> None:
    [found] = problems({**PLAIN, "r": 64}, LLAMA, "vllm", max_lora_rank=16)
    assert found.sentence == "the adapter's rank 64 is above the server's --max-lora-rank 16"
    assert found.remedy == "Start vLLM with --max-lora-rank 64, or train a smaller rank."
    assert problems({**PLAIN, "r": 64}, LLAMA, "vllm", max_lora_rank=64) == []
    assert "no rank above 512" in told({**PLAIN, "r": 513}, "vllm")
    patterned = {**PLAIN, "rank_pattern": {"up_proj": 32}}
    assert len(problems(patterned, LLAMA, "vllm", max_lora_rank=16)) == 1


@pytest.mark.parametrize("limit", [0, 10, 24, 1024])
def test_a_limit_that_vllm_cannot_have(limit: int) -> None:
    with pytest.raises(InvalidInput, match=f"--max-lora-rank {limit}.*{MAX_LORA_RANKS[-1]}"):
        problems(PLAIN, LLAMA, "vllm", max_lora_rank=limit)


@pytest.mark.parametrize("kind", ["qwen3", "mixtral", "phi", "gpt2", "falcon", "gemma", "gemma3", ""])
def test_models_that_tgi_has_no_adapters_for(kind: str) -> None:
    assert "only for gemma2, gemma3_text" in problems(PLAIN, {"model_type": kind}, "tgi")[0].sentence
    assert problems(PLAIN, {"model_type": kind}, "vllm") == []


def of_layers(kind: str, *modules: str) -> str:
    return sentence(problems({**PLAIN, "target_modules": list(modules)}, {"model_type": kind}, "tgi"))[0]


def test_layers_that_tgi_leaves_out_in_silence() -> None:
    assert "in silence, what the adapter changes in gate_proj, up_proj:" in of_layers(
        "qwen2", "gate_proj", "up_proj", "down_proj"
    )
    assert "gate_up_proj" in of_layers("phi3", "gate_up_proj")
    assert "embed_tokens" in of_layers("llama", "model.embed_tokens")
    for kind, modules in SERVED_MODULES.items():
        assert of_layers(kind, *modules) == ""


def test_heads_of_another_width_than_tgi_takes_them_for() -> None:
    assert "head_dim" in problems(PLAIN, {**LLAMA, "head_dim": 8}, "tgi")[0].sentence
    assert problems(PLAIN, {**LLAMA, "head_dim": 4}, "tgi") == []
    assert problems(PLAIN, {**LLAMA, "model_type": "mistral", "head_dim": 8}, "tgi") == []


def without(shapes: dict[str, tuple[int, ...]], part: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if part not in name}


def renamed(shapes: dict[str, tuple[int, ...]], old: str, new: str) -> dict[str, tuple[int, ...]]:
    return {name.replace(old, new): shape for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "words", "servers"),
    [
        ({}, "would answer as the base model", SERVERS),
        (renamed(weights(), "base_model.model.", ""), "does not know these weights", SERVERS),
        (
            {**weights(), "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector": (16,)},
            "magnitude",
            SERVERS,
        ),
        ({**weights(), "base_model.model.model.embed_tokens.lora_embedding_A": (4, 100)}, "embedding_A", SERVERS),
        (without(weights(), "layers.1.mlp.up_proj.lora_B"), "one of lora_A and lora_B is missing", SERVERS),
        (without(weights(), "layers.1.mlp.up_proj"), "up_proj: 1 of 2 blocks", ["tgi"]),
        (weights(layers=3), "no layers model.layers.2.mlp.up_proj, model.layers.2.mlp.down_proj", SERVERS),
        (weights(rank=8), "the configuration's rank is 4", SERVERS),
        ({**weights(), "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": (4, 9)}, "another size", SERVERS),
        ({**weights(), "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight": (16, 5)}, "do not fit", SERVERS),
        (renamed(weights(), "model.layers", "model.model.layers"), "has no layers", SERVERS),
    ],
)
def test_weights_that_are_not_served(shapes: Any, words: str, servers: list[Server]) -> None:
    for server in SERVERS:
        assert (words in told(PLAIN, server, shapes)) == (server in servers)


def test_a_pattern_of_targets_is_judged_by_the_weights() -> None:
    assert told({**PLAIN, "target_modules": "all-linear"}, "tgi", weights()) == ""


def test_names_and_paths_that_tgi_cannot_be_given() -> None:
    for text in ("/a,b", "/a=b", "/a@b", "/a b", "/a\tb", "/a\n"):
        [found] = path_problems(text, "tgi")
        assert repr(text) in found.sentence
        assert path_problems(text, "vllm") == []
    assert path_problems("/srv/adapters/alice-v7", "tgi") == []


# Of real files


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_model import build_random_adapter

    return build_random_adapter(tiny_model, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def changed(adapter: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the adapter with other values in its configuration."""

    def change(**values: Any) -> Path:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (tmp_path / file).write_bytes((adapter / file).read_bytes())
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **values}))
        return tmp_path

    return change


@pytest.mark.parametrize("server", SERVERS)
def test_what_peft_writes_is_served(adapter: Path, tiny_model: Path, server: Server) -> None:
    assert problems(adapter, tiny_model, server) == []


def test_real_weights_on_another_model(adapter: Path, tmp_path: Path) -> None:
    from tiny_model import build_tiny_model

    other = build_tiny_model(tmp_path / "other", layers=3)
    assert "2 of 3 blocks" in sentence(problems(adapter, other, "tgi"))[0]
    assert problems(adapter, other, "vllm") == []


def test_other_weights_beside_the_right_ones(changed: Callable[..., Path], tiny_model: Path) -> None:
    folder = changed()
    (folder / "old.safetensors").write_bytes(b"")
    assert "old.safetensors" in sentence(problems(folder, tiny_model, "tgi"))[0]


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", b"x" * 100])
def test_damaged_weights(changed: Callable[..., Path], tiny_model: Path, content: bytes) -> None:
    folder = changed()
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:1000] if content.endswith(b"{}") else content)
    with pytest.raises(AdapterDamaged, match=r"adapter_model\.safetensors: the weights cannot be read"):
        problems(folder, tiny_model, "tgi")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_damaged_configuration(changed: Callable[..., Path], tiny_model: Path, content: bytes) -> None:
    folder = changed()
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterDamaged, match=r"adapter_config\.json"):
        problems(folder, tiny_model, "tgi")


def test_a_missing_file_or_model(changed: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterDamaged, match="cannot be read"):
        problems(tmp_path / "none", tiny_model, "tgi")
    with pytest.raises(ModelNotPulled):
        problems(changed(), tmp_path / "none", "tgi")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelIntegrityError, match="no valid JSON"):
        problems(changed(), tmp_path, "tgi")
