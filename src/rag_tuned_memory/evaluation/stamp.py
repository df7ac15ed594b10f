"""Under which conditions a result was made: hashes, versions and machine, so that it can be made again."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

LIBRARIES = ("rag-tuned-memory", "torch", "transformers", "peft", "tokenizers", "numpy", "apsw", "sqlite-vec")


@cache
def code_hash() -> str:
    """SHA-256 of every source and prompt file of this package."""
    return _hash_of(_tree(files("rag_tuned_memory")))


@cache
def prompts_hash() -> str:
    """SHA-256 of all prompts."""
    return _hash_of(_tree(files("rag_tuned_memory").joinpath("distil", "prompts")))


def hash_of(parts: Iterable[str]) -> str:
    """SHA-256 of texts in their order, each with its length before it."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(f"{len(data)} ".encode() + data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of the libraries whose version can change a result."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """System, processor and the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"system": platform.system(), "processor": _processor(), "cores": cores}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _hash_of(texts: Iterable[tuple[str, str]]) -> str:
    return hash_of(part for pair in sorted(texts) for part in pair)


def _tree(folder: Traversable, prefix: str = "") -> Iterable[tuple[str, str]]:
    for child in folder.iterdir():
        if child.is_dir():
            if not child.name.startswith((".", "__")):
                yield from _tree(child, f"{prefix}{child.name}/")
        elif child.name.endswith((".py", ".toml", ".txt", ".jinja")):
            yield prefix + child.name, child.read_text(encoding="utf-8")
