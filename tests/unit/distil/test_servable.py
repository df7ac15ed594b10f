"""A recipe is checked for the servers that its adapter is for, before anything is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from incidents import episode
from rag_tuned_memory.adapters import AdapterRegistry
from rag_tuned_memory.distil.lora import check_servable, planned_config
from rag_tuned_memory.distil.recipe import LoraRecipe, Recipe
from rag_tuned_memory.errors import InvalidInput, InvalidRecipe, ModelIntegrityError
from rag_tuned_memory.memory import Memory
from rag_tuned_memory.memory.wiring import load_settings
from rag_tuned_memory.serving.scripted import ScriptedBackend
from rag_tuned_memory.settings import Settings

MLP = Recipe(lora=LoraRecipe(rank=8))


def qwen2(folder: Path) -> Path:
    """The configuration of a small Qwen2; there are no weights."""
    folder.mkdir(exist_ok=True)
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_planned_adapter_is_the_one_that_peft_writes(tiny_model: Path, tmp_path: Path) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from rag_tuned_memory.distil.lora import lora_config

    recipe = Recipe(lora=LoraRecipe(rank=3, alpha=5, layers="all"))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(model, lora_config(model, recipe)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    planned = json.loads(json.dumps(planned_config(tiny_model, recipe), default=str))
    for name in ("base_model_name_or_path", "inference_mode", "auto_mapping"):  # known after training only
        written.pop(name), planned.pop(name)
    written["target_modules"].sort()
    assert {name: planned.get(name) for name in written} == written


def test_a_recipe_that_all_servers_serve(tiny_model: Path) -> None:
    check_servable(tiny_model, Recipe(), ["tgi", "vllm"])
    check_servable(tiny_model, Recipe(lora=LoraRecipe(layers="all")), ["tgi", "vllm"])


def test_layers_that_tgi_would_leave_out(tmp_path: Path) -> None:
    base = qwen2(tmp_path / "qwen2")
    with pytest.raises(InvalidRecipe, match=r"RTM_SERVE_FOR=tgi: .*gate_proj, up_proj.*Serve with vLLM"):
        check_servable(base, MLP, ["vllm", "tgi"])
    check_servable(base, MLP, ["vllm"])
    check_servable(base, MLP, [])


def test_a_rank_above_the_server_s(tiny_model: Path) -> None:
    with pytest.raises(InvalidRecipe, match=r"rank 64 is above .* 16\. Start vLLM with --max-lora-rank 64"):
        check_servable(tiny_model, Recipe(), ["vllm"], max_lora_rank=16)


def test_a_base_model_that_cannot_be_understood(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(ModelIntegrityError, match="cannot be understood"):
        check_servable(tmp_path, MLP, ["vllm"])


def test_a_run_ends_before_it_begins(tmp_path: Path) -> None:
    base = qwen2(tmp_path / "qwen2")
    settings = Settings(home=tmp_path / "home", embedder="hashing", model=str(base), serve_for=("tgi",))
    with Memory("ops", settings=settings, backend=ScriptedBackend(lambda request: "x")) as memory:
        memory.record(episode())
        with pytest.raises(InvalidRecipe, match="in silence"):
            memory.distil(MLP)
    assert AdapterRegistry(settings.adapters_dir).list() == []
    assert not list((tmp_path / "home").rglob("dataset.jsonl"))


@pytest.mark.parametrize(("text", "servers"), [("", ()), ("tgi", ("tgi",)), (" vLLM , tgi,", ("vllm", "tgi"))])
def test_servers_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, servers: tuple[str, ...]
) -> None:
    monkeypatch.setenv("RTM_SERVE_FOR", text)
    assert load_settings().serve_for == servers


def test_an_unknown_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTM_SERVE_FOR", "sglang")
    with pytest.raises(InvalidInput, match=r"RTM_SERVE_FOR.*'tgi' or 'vllm'"):
        load_settings()
