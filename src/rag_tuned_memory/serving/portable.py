"""A base model's folder in the form of transformers 4, which TGI 3.3 reads (it holds transformers 4.51).

Of a folder that transformers 5 saved it refuses the tokenizer, whose class it does not know. With that mended it
starts, but takes the default rope_theta instead of the one in ``rope_parameters``, in silence, and finds no chat
template (recorded on a real server). What is written here is read alike by both versions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rag_tuned_memory.errors import ModelError, ModelIntegrityError
from rag_tuned_memory.models import ModelInfo, import_extra, quiet_transformers, read_info
from rag_tuned_memory.models.folder import INFO_FILE
from rag_tuned_memory.serving.folder import identity, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_CLASS: Final = "PreTrainedTokenizerFast"
"""Takes ``tokenizer.json`` as it is, in every version; the classes of single models would rebuild parts of it."""
_OF_THIS_MACHINE = ("_name_or_path", "_commit_hash")
_DTYPES: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_LONGROPE: Final = ("short_factor", "long_factor", "short_mscale", "long_mscale")


def portable_files(folder: Path) -> dict[str, bytes | Path]:
    """The files of a folder that both versions read alike, by name: new content, or the file to be copied.

    This package takes the result for the same model (``serving.folder.identity``), so that adapters fit it. Blocking.

    Raises:
        ModelNotPulled, ModelIntegrityError: there is no model, or its files cannot be read.
        ModelError: transformers 4 has no form for it.
        MissingExtra: the extra ``local`` is not installed.
    """
    tokenizer = load_tokenizer(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError("the model has no *.safetensors", place=str(folder), remedy="Save it with save_pretrained.")
    files: dict[str, bytes | Path] = {
        "config.json": _json(legacy_config(_config(folder, weights[0]))),
        "tokenizer.json": _backend(tokenizer, folder),
        "tokenizer_config.json": _json(legacy_tokenizer_config(tokenizer)),
    }
    files |= {path.name: path for path in (*weights, *folder.glob("*.safetensors.index.json"))}
    if (generation := folder / "generation_config.json").is_file():
        files[generation.name] = generation
    return {**files, INFO_FILE: _info(folder, files)}


def portable_faults(folder: Path) -> list[str]:
    """Why TGI would refuse the folder, or read it wrongly, as sentences; empty if it reads it right.

    Raises:
        ModelIntegrityError: a file is missing or no JSON.
    """
    config, tokenizer = (_read(folder / name) for name in ("config.json", "tokenizer_config.json"))
    faults = []
    if tokenizer.get("tokenizer_class") in (None, "TokenizersBackend"):
        faults.append("tokenizer_config.json names a tokenizer_class that transformers 4 does not have")
    if not tokenizer.get("chat_template"):
        faults.append("tokenizer_config.json holds no chat_template (chat_template.jinja is not read)")
    if "rope_theta" not in config:
        faults.append("config.json has no rope_theta at its top (rope_parameters is not read)")
    if "torch_dtype" not in config:
        faults.append("config.json has no torch_dtype")
    return faults


def legacy_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A text model's configuration of transformers 5, all fields given, with those of version 4 in their places.

    Raises:
        ModelError: there is no such place.
    """
    config = {name: value for name, value in values.items() if name not in _OF_THIS_MACHINE}
    if nested := [name for name, value in config.items() if name.endswith("_config") and isinstance(value, Mapping)]:
        nested = [name for name in nested if name != "quantization_config"]
    if nested:
        raise ModelError(
            f"only models of text alone can be exported; this one has a {nested[0]}", remedy="Choose another one."
        )
    config["torch_dtype"] = config.pop("dtype", None)
    if (rope := config.pop("rope_parameters", None)) is not None:
        config |= _legacy_rope(rope, str(config.get("model_type")))
    if config.get("model_type") == "gemma3_text":
        config["sliding_window_pattern"] = _pattern(config.get("layer_types") or [])
    return config


def legacy_tokenizer_config(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """``tokenizer_config.json`` as version 4 has it: chat template inside, special tokens by their names."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    template = tokenizer.chat_template
    return {
        "tokenizer_class": TOKENIZER_CLASS,
        **special,
        "additional_special_tokens": [str(token) for token in getattr(tokenizer, "extra_special_tokens", None) or []],
        "added_tokens_decoder": {
            str(index): {
                name: getattr(token, name)
                for name in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
            }
            for index, token in sorted(tokenizer.added_tokens_decoder.items())
        },
        "chat_template": _templates(template) if isinstance(template, dict) else template,
        "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
        "model_input_names": list(tokenizer.model_input_names),
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
    }


def _legacy_rope(rope: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    if all(isinstance(value, Mapping) for value in rope.values()):  # of each kind of layer
        if set(rope) != {"full_attention", "sliding_attention"} or model_type != "gemma3_text":
            raise ModelError(f"transformers 4 has no form for rotary embeddings of {', '.join(rope)}")
        local = _legacy_rope(rope["sliding_attention"], model_type)
        if local["rope_scaling"] is not None:
            raise ModelError("transformers 4 has no form for scaled rotary embeddings of sliding_attention")
        return {**_legacy_rope(rope["full_attention"], model_type), "rope_local_base_freq": local["rope_theta"]}
    scaling = dict(rope)
    found = {"rope_theta": scaling.pop("rope_theta")}
    if "partial_rotary_factor" in scaling:
        found["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    kind = scaling.pop("rope_type", "default")
    if kind == "default":
        return {**found, "rope_scaling": None}
    if kind == "longrope" and "original_max_position_embeddings" in scaling:
        found["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    if model_type == "phi3":  # refuses whatever else there is
        return {**found, "rope_scaling": {"type": kind, **{n: scaling[n] for n in _LONGROPE if n in scaling}}}
    return {**found, "rope_scaling": {"rope_type": kind, "type": kind, **scaling}}


def _pattern(layer_types: list[str]) -> int:
    """One in so many blocks attends to everything. Raises ModelError where they do not take turns."""
    pattern = layer_types.index("full_attention") + 1 if "full_attention" in layer_types else len(layer_types) + 1
    if any((kind == "full_attention") != (not index % pattern) for index, kind in enumerate(layer_types, start=1)):
        raise ModelError("transformers 4 has no form for this order of layer_types")
    return pattern


def _templates(templates: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "template": template} for name, template in templates.items()]


def _config(folder: Path, weights: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            found: dict[str, Any] = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    except (OSError, ValueError) as error:
        raise ModelIntegrityError(f"config.json cannot be understood: {error}", place=str(folder)) from error
    return {**found, "dtype": found.get("dtype") or _stored_dtype(weights)}


def _stored_dtype(weights: Path) -> str:
    safetensors = import_extra("safetensors")
    try:
        with safetensors.safe_open(weights, framework="numpy") as file:
            stored = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelIntegrityError(f"the weights cannot be read: {error}", place=str(weights)) from error
    return next((_DTYPES[dtype] for dtype in sorted(stored) if dtype in _DTYPES), "float32")


def _backend(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bytes:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            "the tokenizer has no form as tokenizer.json, which servers need",
            place=str(folder),
            remedy="Convert it to a fast tokenizer.",
        )
    return str(backend.to_str(pretty=True)).encode()


def _info(folder: Path, files: Mapping[str, bytes | Path]) -> bytes:
    name, _, revision = identity(folder).rpartition("@")
    if (folder / INFO_FILE).is_file():
        revision = read_info(folder).revision
    sizes = {file: len(data) if isinstance(data, bytes) else data.stat().st_size for file, data in files.items()}
    info = ModelInfo(name=name, revision=revision, source=f"export:{name}", files=sizes)
    return info.model_dump_json(indent=2).encode() + b"\n"


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelIntegrityError(f"the file cannot be read: {error}", place=str(path)) from error
    return found if isinstance(found, dict) else {}
