"""Bringing a finished run into a registry, and proving that a version's files are what they were."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from rag_tuned_memory.adapters.files import (
    copy_durably,
    relative_files,
    sha256_of,
    staging_folder,
    sync_folder,
    write_durably,
)
from rag_tuned_memory.adapters.gate import decide
from rag_tuned_memory.adapters.log import STATE_FILE, read_log
from rag_tuned_memory.adapters.manifest import FORMAT, Draft, FileEntry, Manifest, adapter_name
from rag_tuned_memory.errors import AdapterDamaged, AdapterError, InvalidInput
from rag_tuned_memory.trajectory import describe

MANIFEST_FILE = "manifest.json"
REQUIRED_FILES = ("adapter_model.safetensors", "adapter_config.json")
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt"})


@contextlib.contextmanager
def staged_copy(source: Path, registry: Path) -> Iterator[tuple[Path, dict[str, FileEntry]]]:
    """Copy a run's folder into the registry's staging area; what is not published when the block ends is removed.

    Yields the copy and the checksums of its files. Copies that killed processes left behind are removed first.

    Raises:
        InvalidInput: ``source`` is no finished adapter, or holds files that the registry itself writes.
    """
    _check_source(source)
    with staging_folder(registry) as staging:
        for name in relative_files(source):
            copy_durably(source / name, staging / name)
        # The copy is what counts: a source that changes meanwhile cannot make the checksums lie.
        yield staging, {name: _entry(staging / name) for name in relative_files(staging)}


def publish(staging: Path, target: Path, own_files: Mapping[str, bytes]) -> None:
    """Add the registry's own files to a staged copy, and give the whole its final name in one step."""
    for name, data in own_files.items():
        write_durably(staging / name, data)
    sync_folder(staging)
    staging.rename(target)
    sync_folder(target.parent)


def draft_to_manifest(draft: Draft, namespace: str, version: int, files: dict[str, FileEntry]) -> Manifest:
    """The manifest of a new version, with the gate's decision about it."""
    return Manifest(
        **dict(draft),
        name=adapter_name(namespace, version),
        namespace=namespace,
        version=version,
        created_at=datetime.now(UTC),
        decision=decide(draft.metrics, draft.recipe.gate),
        files=files,
    )


def manifest_bytes(manifest: Manifest) -> tuple[bytes, str]:
    """The manifest as it is written, for people to read too, and its SHA-256."""
    data = manifest.model_dump_json(indent=2).encode() + b"\n"
    return data, hashlib.sha256(data).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """A version's manifest, compared with the checksum that was logged at its registration.

    Raises:
        AdapterDamaged: it is missing or was changed.
        AdapterError: a newer version of this package wrote it.
    """
    path = folder / MANIFEST_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"the manifest cannot be read ({error.strerror})") from error
    if hashlib.sha256(data).hexdigest() != read_log(folder)[0].manifest_sha256:
        raise _damaged(path, "the manifest was changed after registration")
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        if json.loads(data).get("format", FORMAT) > FORMAT:
            raise AdapterError(
                "a newer version of rag-tuned-memory wrote this manifest", place=str(path), remedy="Upgrade it."
            ) from error
        raise _damaged(path, f"the manifest cannot be read ({describe(error)})") from error


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its checksum; weights that the manifest does not know are damage too.

    (TGI loads every safetensors file that it finds beside the right one.)

    Raises:
        AdapterDamaged: naming the file.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise _damaged(path, "a file of the adapter is missing")
        if path.stat().st_size != entry.bytes or sha256_of(path) != entry.sha256:
            raise _damaged(path, "a file of the adapter differs from its checksum")
    for name in relative_files(folder):
        if name not in manifest.files and Path(name).suffix in _WEIGHTS:
            raise _damaged(folder / name, "weights lie here that are not part of the adapter")


def _check_source(source: Path) -> None:
    for name in REQUIRED_FILES:
        if not (source / name).is_file():
            raise InvalidInput(
                f"{name} is missing, so this is no finished adapter",
                place=str(source),
                remedy="Save it with PEFT's save_pretrained(safe_serialization=True).",
            )
    for name in (MANIFEST_FILE, STATE_FILE):
        if (source / name).exists():
            raise InvalidInput(
                f"{name} is written by the registry and cannot be part of a run",
                place=str(source),
                remedy="Register the folder of a run, not that of a registered adapter.",
            )


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)


def _damaged(path: Path, message: str) -> AdapterDamaged:
    return AdapterDamaged(message, place=str(path), remedy="Restore the folder from a backup, or taint this version.")
