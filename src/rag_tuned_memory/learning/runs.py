"""Where the runs of a namespace lie on the disk."""

from __future__ import annotations

from pathlib import Path

from rag_tuned_memory.distil.naming import namespace_slug


def run_folders(runs: Path, namespace: str) -> list[Path]:
    """Folders of runs that did not end: data sets and checkpoints. A finished run leaves nothing below ``runs``."""
    folder = runs / namespace_slug(namespace)
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
