"""The base model that is written for TGI, held against the rules here and against transformers 4 where there is one.

``RTM_TEST_TRANSFORMERS4`` names a Python with transformers 4 (TGI 3.3 holds 4.51) and torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.adapters.frozen import write_once
from rag_tuned_memory.errors import ModelError, ModelIntegrityError, ModelNotPulled
from rag_tuned_memory.models import locate, read_info
from rag_tuned_memory.serving.folder import identity
from rag_tuned_memory.serving.portable import legacy_config, legacy_tokenizer_config, portable_faults, portable_files

PROBE = Path(__file__).parents[2] / "transformers4_probe.py"
TEXTS = [
    "The payment service failed at 12:30 because the disk was full.",
    "Zoë said: 東京で会いましょう 🙂\n\n\tdef f(x): return x**2 <|im_start|>user",
    "a" * 50 + " 1234567890 don't, I 'm here .",
    "The quick brown fox jumps over the lazy dog. " * 60,
]
CHATS = [
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?\n"},
        {"role": "assistant", "content": " Ana."},
        {"role": "user", "content": "When?"},
    ],
]
SMALL = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0 + n / 9 for n in range(8)], "long_factor": [2.0 + n for n in range(8)]}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0}},
    "llama, scaled": {
        "rope_parameters": {**LLAMA3, "rope_theta": 500_000.0, "original_max_position_embeddings": 128},
    },
    "mistral": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "sliding_window": None, "head_dim": 32},
    "qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "tie_word_embeddings": True},
    "qwen2, scaled": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,  # transformers 4.51 takes the ratio of the two lengths in its place: they must agree
            "rope_theta": 1e6,
            "original_max_position_embeddings": 128,
        },
    },
    "gemma2": {"rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}, "head_dim": 16},
    "gemma3_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
        },
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "sliding_window": 16,
        "head_dim": 16,
    },
    "phi3": {
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 30_000.0, **FACTORS},
        "original_max_position_embeddings": 128,
        "max_position_embeddings": 1024,
    },
    "granite": {"rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0}, "attention_multiplier": 0.2},
    "starcoder2": {"rope_parameters": {"rope_type": "default", "rope_theta": 70_000.0}, "sliding_window": 64},
}


def build(kind: str, tiny: Path, folder: Path) -> Path:
    """A random model of another kind with the tiny model's tokenizer, as transformers 5 saves it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind.partition(",")[0], **{**SMALL, **KINDS[kind]})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def export(folder: Path, to: Path) -> Path:
    write_once(to, to / "base", portable_files(folder))
    return to / "base"


def look(python: str, folders: Sequence[Path], texts: Sequence[str] = TEXTS) -> dict[str, Any]:
    done = subprocess.run(
        [python, str(PROBE), *map(str, folders)],
        input=json.dumps({"texts": texts, "chats": CHATS}),
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def same(found: dict[str, Any], original: dict[str, Any], within: float = 1e-4) -> None:
    """All but the configuration, whose form is another."""
    for name in ("ids", "plain_ids", "decoded", "chats", "special"):
        assert found[name] == original[name], name
    for one, other in zip(found["logits"], original["logits"], strict=True):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) <= within


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_model, tmp_path_factory.mktemp("export"))


def test_what_transformers_5_saves_is_not_read_right(tiny_model: Path, exported: Path) -> None:
    faults = " ".join(portable_faults(tiny_model))
    for word in ("tokenizer_class", "chat_template", "rope_theta", "torch_dtype"):
        assert word in faults
    assert portable_faults(exported) == []


def test_the_rules_for_each_file(tiny_model: Path, exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config["rope_theta"] == 10_000.0
    assert config["rope_scaling"] is None
    assert config["torch_dtype"] == "float32"
    assert {"rope_parameters", "dtype", "_name_or_path"}.isdisjoint(config)
    tokenizer = json.loads((exported / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["chat_template"] == (tiny_model / "chat_template.jinja").read_text()
    assert (tokenizer["bos_token"], tokenizer["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer["additional_special_tokens"] == []
    assert tokenizer["added_tokens_decoder"]["1"]["content"] == "<|im_start|>"
    assert "token_type_ids" not in tokenizer["model_input_names"]
    assert json.loads((exported / "tokenizer.json").read_text()) == json.loads(
        (tiny_model / "tokenizer.json").read_text()
    )
    assert (exported / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    assert not (exported / "chat_template.jinja").exists()


def test_no_path_of_this_machine_is_written(tiny_model: Path, exported: Path) -> None:
    for file in exported.iterdir():
        if file.suffix == ".json":
            assert str(tiny_model.parent) not in file.read_text()


def test_it_is_the_same_model_to_this_package(tiny_model: Path, exported: Path) -> None:
    assert identity(exported) == identity(tiny_model)
    assert read_info(exported).name == "tiny"
    assert locate(str(exported), Path("none")) == exported


def test_it_can_be_exported_again_from_the_export(exported: Path, tmp_path: Path) -> None:
    again = export(exported, tmp_path)
    for file in exported.iterdir():
        if file.name != "config.json":  # transformers adds fields of its own to it
            assert file.read_bytes() == (again / file.name).read_bytes() or file.name == "rtm-model.json"
    assert portable_faults(again) == []


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_5_reads_it_as_the_original(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    original = build(kind, tiny_model, tmp_path / "original")
    written = export(original, tmp_path)
    ids = torch.arange(300)[None] % 500
    with torch.inference_mode():
        one, other = (AutoModelForCausalLM.from_pretrained(f).eval()(ids).logits for f in (original, written))
    assert torch.equal(one, other)


def test_a_scaled_or_shared_rope_in_its_old_places() -> None:
    config = legacy_config(
        {"model_type": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 5e5}, "dtype": "float16"}
    )
    assert config["rope_theta"] == 5e5
    assert config["rope_scaling"] == {**LLAMA3, "type": "llama3"}
    config = legacy_config({**KINDS["gemma3_text"], "model_type": "gemma3_text"})
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 20_000.0)
    assert config["sliding_window_pattern"] == 3
    config = legacy_config({**KINDS["phi3"], "model_type": "phi3"})
    assert set(config["rope_scaling"]) == {"type", "short_factor", "long_factor"}
    partial = {"rope_type": "default", "rope_theta": 1.0, "partial_rotary_factor": 0.5}
    assert legacy_config({"model_type": "phi3", "rope_parameters": partial})["partial_rotary_factor"] == 0.5


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "gemma3", "text_config": {"hidden_size": 1}, "vision_config": {"hidden_size": 1}},
        {"model_type": "other", "rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
        {
            "model_type": "gemma3_text",
            "rope_parameters": KINDS["gemma3_text"]["rope_parameters"],
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        },
        {
            "model_type": "gemma3_text",
            "rope_parameters": {
                "full_attention": {"rope_theta": 1.0},
                "sliding_attention": {"rope_theta": 1.0, "rope_type": "linear", "factor": 2.0},
            },
        },
    ],
)
def test_what_version_4_has_no_form_for_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        legacy_config(values)


def test_special_tokens_and_several_templates(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model, extra_special_tokens=["<repo_name>"])
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    config = legacy_tokenizer_config(tokenizer)
    assert config["additional_special_tokens"] == ["<repo_name>"]
    assert config["chat_template"] == [
        {"name": "default", "template": "a"},
        {"name": "tool_use", "template": "b"},
    ]


def test_a_folder_that_is_no_model(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotPulled):
        portable_files(tmp_path)
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        portable_files(tmp_path)
    with pytest.raises(ModelIntegrityError, match=r"config\.json"):
        portable_faults(tmp_path / "none")


# Against transformers 4


@pytest.fixture(scope="module")
def transformers4() -> str:
    python = os.environ.get("RTM_TEST_TRANSFORMERS4")
    if not python:
        pytest.skip("no transformers 4: set RTM_TEST_TRANSFORMERS4 to a Python that has it, and torch")
    return python


@pytest.mark.slow
def test_transformers_4_reads_every_kind_as_version_5_the_original(
    transformers4: str, tiny_model: Path, tmp_path: Path
) -> None:
    originals = {kind: build(kind, tiny_model, tmp_path / f"{n}-original") for n, kind in enumerate(KINDS)}
    written = {kind: export(folder, tmp_path / f"{n}") for n, (kind, folder) in enumerate(originals.items())}
    texts = [text[:250] for text in TEXTS]
    four = look(transformers4, list(written.values()), texts)
    five = look(sys.executable, list(originals.values()), texts)
    assert four["version"].startswith("4.")
    for kind, folder in written.items():
        found = four["folders"][str(folder)]
        same(found, five["folders"][str(originals[kind])])
        rope = KINDS[kind]["rope_parameters"]
        assert found["rope_theta"] == rope.get("full_attention", rope)["rope_theta"], kind


@pytest.mark.slow
def test_transformers_4_reads_smollm2_as_version_5_the_original(
    transformers4: str, models_cache: Path, tmp_path: Path
) -> None:
    original = locate("SmolLM2-135M-Instruct", models_cache)
    written = export(original, tmp_path)
    found = look(transformers4, [written])["folders"][str(written)]
    same(found, look(sys.executable, [original])["folders"][str(original)])
    assert found["rope_theta"] == 100_000.0


@pytest.mark.slow
def test_transformers_4_does_not_read_what_version_5_saved(transformers4: str, tiny_model: Path) -> None:
    """Why all of this is done. Should it read it one day, the export is needless."""
    with pytest.raises(AssertionError, match="TokenizersBackend"):
        look(transformers4, [tiny_model])
