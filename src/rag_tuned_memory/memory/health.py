"""Looking for what is wrong: store, embedder, models, adapters, installed parts, disk space."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from rag_tuned_memory.adapters.manifest import parse_name
from rag_tuned_memory.adapters.publish import verify_files
from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.adapters.states import State
from rag_tuned_memory.errors import AdapterNotFound, MissingExtra, RagTunedMemoryError
from rag_tuned_memory.memory.wiring import Parts
from rag_tuned_memory.models import locate, read_info, require

LEAST_FREE_BYTES = 1 << 30
_LOCAL = ("torch", "transformers", "peft", "safetensors", "matplotlib", "jinja2")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``detail`` of a problem says what to do."""

    subject: str
    ok: bool
    detail: str


async def check_health(parts: Parts) -> list[Finding]:
    """Look at everything that the settings name. Reads the whole store and all weights of adapters."""
    return [
        *await _store(parts),
        *await anyio.to_thread.run_sync(lambda: list(_models(parts))),
        *await anyio.to_thread.run_sync(lambda: list(_adapters(parts.registry))),
        *await anyio.to_thread.run_sync(lambda: list(_extras(parts))),
        *await anyio.to_thread.run_sync(lambda: list(_space(parts))),
    ]


async def _store(parts: Parts) -> list[Finding]:
    subject = f"store {parts.settings.store_url}"
    try:
        store = await anyio.to_thread.run_sync(parts.store)
        problems = await store.check()
        if problems:
            return [Finding(subject, False, problem) for problem in problems]
        namespaces = await store.namespaces()
        found = [Finding(subject, True, f"whole, {len(namespaces)} namespaces")]
        for namespace in namespaces:
            found += await _vectors(parts, namespace)
    except RagTunedMemoryError as error:
        return [Finding(subject, False, str(error))]
    return found


async def _vectors(parts: Parts, namespace: str) -> list[Finding]:
    """Whether a namespace's vectors are of the embedder that the settings name; nothing where that cannot be told."""
    stored = await parts.store().embedder(namespace)
    try:
        identity = await anyio.to_thread.run_sync(lambda: parts.embedder().identity)
    except RagTunedMemoryError:
        return []  # said once, under the models
    if stored is None or stored == identity:
        return []
    return [
        Finding(
            f"vectors of namespace {namespace!r}",
            False,
            f"made by {stored.model} (revision {stored.revision[:12]}), the settings name {identity.model} (revision "
            f"{identity.revision[:12]}). Set RTM_EMBEDDER back, or run: rtm reindex -n '{namespace}'",
        )
    ]


def _models(parts: Parts) -> Iterator[Finding]:
    settings = parts.settings
    names = [settings.model] if settings.embedder == "hashing" else [settings.embedder, settings.model]
    for name in names:
        try:
            info = read_info(locate(name, settings.cache))
            yield Finding(f"model {name}", True, f"from {info.source}")
        except RagTunedMemoryError as error:
            yield Finding(f"model {name}", False, str(error))


def _adapters(registry: AdapterRegistry) -> Iterator[Finding]:
    for folder in sorted(registry.folder.iterdir()) if registry.folder.is_dir() else ():
        try:
            parse_name(folder.name)
        except AdapterNotFound:
            continue  # not an adapter's folder
        try:
            manifest, state = registry.get(folder.name), registry.state(folder.name)
            if state is not State.TAINTED:  # whose files may be deleted
                verify_files(folder, manifest)
            yield Finding(f"adapter {folder.name}", True, state.value)
        except RagTunedMemoryError as error:
            yield Finding(f"adapter {folder.name}", False, str(error))


def _extras(parts: Parts) -> Iterator[Finding]:
    needed = {"local": _LOCAL, **({"teacher": ("openai",)} if parts.settings.teacher_url else {})}
    for extra, modules in needed.items():
        try:
            for module in modules:
                require(module, extra=extra)
            yield Finding(f"extra [{extra}]", True, "installed")
        except MissingExtra as error:
            yield Finding(f"extra [{extra}]", False, str(error))


def _space(parts: Parts) -> Iterator[Finding]:
    for variable, folder in {"RTM_HOME": parts.settings.home, "RTM_CACHE": parts.settings.cache}.items():
        free = shutil.disk_usage(_existing(folder)).free
        detail = f"{free / 1e9:.1f} GB free"
        if free < LEAST_FREE_BYTES:
            detail += f", less than {LEAST_FREE_BYTES / 1e9:.1f} GB. Make room, or point {variable} elsewhere."
        yield Finding(f"disk of {folder}", free >= LEAST_FREE_BYTES, detail)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
