"""Writing adapters for servers: immutable folders on a volume that the servers share.

    <folder>/adapters/alice-v7/adapter_model.safetensors, adapter_config.json
    <folder>/base/SmolLM2-135M-Instruct-12fd25f77366/                            a base model that TGI reads right

Only what a server needs is written: not the manifest, and nothing of what the adapter learned.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from rag_tuned_memory.adapters.files import sha256_of
from rag_tuned_memory.adapters.frozen import Contents, write_once
from rag_tuned_memory.adapters.manifest import Manifest
from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.adapters.states import NEVER_SERVES, State
from rag_tuned_memory.errors import AdapterDamaged, AdapterError, AdapterNotServable, InvalidInput
from rag_tuned_memory.serving.compatibility import Problem, Server, path_problems, problems, sentence
from rag_tuned_memory.serving.compatibility.facts import CONFIG_FILE, WEIGHTS_FILE
from rag_tuned_memory.serving.folder import identity
from rag_tuned_memory.serving.portable import portable_faults, portable_files

EXPORTABLE: Final = frozenset({State.ACCEPTED, State.SERVING, State.RETIRED})
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported. Paths with ``server_`` are as the server sees them.

    ``server_base`` is what the server is to be started with as its model; the adapter's configuration names the same as
    its base. ``written`` are the folders that were made now; those that were there already are not among them.
    """

    name: str
    server: Server
    folder: Path
    base_folder: Path
    server_path: str
    server_base: str
    rank: int
    written: tuple[Path, ...]


def export_adapter(
    registry: AdapterRegistry,
    name: str,
    server: Server,
    to: Path,
    base: Path,
    *,
    namespace: str | None = None,
    write_base: bool | None = None,
    base_name: str | None = None,
    mount: str | None = None,
    max_lora_rank: int | None = None,
) -> Exported:
    """Write an adapter, and where wanted its base model, to the folder ``to`` for a server. Blocking.

    ``base`` is the folder of the base model that the adapter was trained on. With ``write_base`` it is written too, in
    a form that TGI reads right; None means where it is missing, for TGI. ``base_name`` is what the server is started
    with as its model, by default the folder of the base model. ``mount`` is where the server sees ``to``.
    ``max_lora_rank`` is vLLM's. Doing it again changes nothing.

    Raises:
        AdapterNotFound: there is none of this name.
        AdapterNotServable: it was not accepted, or the server could not serve it as it was trained.
        AdapterDamaged: its files differ from its manifest.
        AdapterError: another base model was given, or something else lies there under this name.
        StoreFull: no space is left; nothing was left behind.
        ModelError and kin: the base model cannot be read, or cannot be written for TGI.
        InvalidInput: a path that the server cannot be given.
    """
    source = registry.path(name, namespace=namespace)
    manifest = registry.get(name, namespace=namespace)
    _check_state(registry, name)
    _check_base(manifest, base)
    _check_servable(name, problems(source, base, server, max_lora_rank=max_lora_rank))
    to = to.expanduser().absolute()
    seen = PurePosixPath(mount or to.as_posix())
    base_target = to / "base" / _NOT_IN_NAMES.sub("-", identity(base))
    target = to / "adapters" / name
    if not seen.is_absolute():
        raise InvalidInput("the folder as the server sees it must be an absolute path", place=str(seen))
    _check_paths(server, {"the adapter's path": str(seen / "adapters" / name), "its name": name})
    if write_base is None:
        write_base = server == "tgi" and not base_target.is_dir()
    written = [base_target] if _export_base(base, base_target, to, write_base) else []
    base_folder = base_target if base_target.is_dir() else base.absolute()
    if server == "tgi" and base_name is None:
        _check_readable(base_folder)
    seen_base = seen / "base" / base_target.name if base_target.is_dir() else base_folder
    server_base = base_name or str(seen_base)
    config = {**_read(source / CONFIG_FILE), "base_model_name_or_path": server_base}
    contents: Contents = {CONFIG_FILE: _json(config), WEIGHTS_FILE: source / WEIGHTS_FILE}
    if write_once(to, target, contents):
        written.append(target)
    try:
        _check_written(registry, manifest, target)
    except (AdapterDamaged, AdapterNotServable):
        if target in written:
            shutil.rmtree(target, ignore_errors=True)
        raise
    return Exported(
        name=name,
        server=server,
        folder=target,
        base_folder=base_folder,
        server_path=str(seen / "adapters" / name),
        server_base=server_base,
        rank=int(config["r"]),
        written=tuple(written),
    )


def _check_state(registry: AdapterRegistry, name: str) -> None:
    if (state := registry.state(name)) not in EXPORTABLE:
        raise AdapterNotServable(
            f"adapter {name} is {state}, and only what the gate accepted is exported",
            remedy="`rtm adapters list` shows the states.",
        )


def _check_base(manifest: Manifest, base: Path) -> None:
    if (found := identity(base)) != manifest.base_revision:
        raise AdapterError(
            f"adapter {manifest.name} was trained on {manifest.base_revision}, and this is {found}",
            place=str(base),
            remedy="Name the base model that it was trained on with RTM_MODEL.",
        )


def _check_servable(name: str, found: list[Problem]) -> None:
    if found:
        message, remedy = sentence(found)
        raise AdapterNotServable(message, place=name, remedy=remedy)


def _check_paths(server: Server, paths: Mapping[str, str]) -> None:
    found = [problem for what, text in paths.items() for problem in path_problems(text, server, what=what)]
    if found:
        message, remedy = sentence(found)
        raise InvalidInput(message, remedy=remedy)


def _export_base(base: Path, target: Path, to: Path, wanted: bool) -> bool:
    """Write the base model where that is wanted; whether it was written now."""
    return wanted and write_once(to, target, portable_files(base))


def _check_readable(folder: Path) -> None:
    if faults := portable_faults(folder):
        raise AdapterError(
            f"TGI would not read this base model right: {'; '.join(faults)}",
            place=str(folder),
            remedy="Export the base model too, or say with a base name what the server is started with.",
        )


def _check_written(registry: AdapterRegistry, manifest: Manifest, target: Path) -> None:
    """What lies there now is what was trained, and may still be served."""
    if sha256_of(target / WEIGHTS_FILE) != manifest.files[WEIGHTS_FILE].sha256:
        raise AdapterDamaged("the weights changed while they were exported", place=str(target), remedy="Try again.")
    if (state := registry.state(manifest.name)) in NEVER_SERVES:  # forgotten just now
        raise AdapterNotServable(f"adapter {manifest.name} is {state} and never serves", remedy="Distil again.")


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_bytes())  # checked before, with everything else that it holds
    return values


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2, sort_keys=True).encode() + b"\n"
