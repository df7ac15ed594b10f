"""The inference backend that the settings name."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.base import InferenceBackend
from rag_tuned_memory.settings import Settings

_PLACE = "backend (RTM_BACKEND)"


def open_backend(settings: Settings, base: Path) -> InferenceBackend:
    """The backend of ``settings.backend``, for the base model in the folder ``base``. Nothing is connected yet.

    Raises:
        InvalidInput: a URL of no known kind, or no command where one is needed.
        ModelNotPulled: the folder holds no model. MissingExtra: the kind's extra is not installed.
    """
    if not settings.backend:
        from rag_tuned_memory.serving.local import LocalBackend

        return LocalBackend(base)
    if settings.backend in ("supervised", "hook"):
        return _blue_green(settings, base)
    replicas = [_replica(url.strip(), settings, base) for url in settings.backend.split(",")]
    if len(replicas) == 1:
        return replicas[0]
    from rag_tuned_memory.serving.fleet import Fleet

    return Fleet(replicas)


def _replica(url: str, settings: Settings, base: Path) -> InferenceBackend:
    kind, _, address = url.partition("+")
    if kind not in _KINDS or not address.startswith(("http://", "https://")):
        raise InvalidInput(
            f"no backend has the URL {url!r}",
            place=_PLACE,
            remedy=f"Write {', '.join(f'{one}+http://host:port' for one in _KINDS)}, supervised, hook, or nothing.",
        )
    return _KINDS[kind](address, settings, base)


def _vllm(url: str, settings: Settings, base: Path) -> InferenceBackend:
    from rag_tuned_memory.serving.vllm import VllmBackend

    return VllmBackend(url, base, model=settings.backend_model, api_key=settings.backend_key)


def _tgi(url: str, settings: Settings, base: Path) -> InferenceBackend:
    from rag_tuned_memory.serving.tgi import TgiBackend

    return TgiBackend(url, base, api_key=settings.backend_key)


def _openai(url: str, settings: Settings, base: Path) -> InferenceBackend:
    from rag_tuned_memory.serving.openai_compatible import OpenAICompatible

    if settings.backend_model is None:
        raise InvalidInput(
            "the endpoint's model has no name", place="backend_model (RTM_BACKEND_MODEL)", remedy="Set it."
        )
    return OpenAICompatible(url, settings.backend_model, settings.backend_key)


_KINDS: Mapping[str, Callable[[str, Settings, Path], InferenceBackend]] = {
    "vllm": _vllm,
    "tgi": _tgi,
    "openai": _openai,
}


def _blue_green(settings: Settings, base: Path) -> InferenceBackend:
    from rag_tuned_memory.serving.folder import ModelFolder
    from rag_tuned_memory.serving.rollout import BlueGreen, CommandLauncher, ProcessLauncher
    from rag_tuned_memory.serving.tgi import TgiBackend

    if not settings.serve_command:
        raise InvalidInput(
            f"the backend {settings.backend!r} needs a command",
            place="serve_command (RTM_SERVE_COMMAND)",
            remedy="Such as: text-generation-launcher --model-id FOLDER --port {port}",
        )
    command, folder = shlex.split(settings.serve_command), settings.home / "rollout"
    supervised = settings.backend == "supervised"
    return BlueGreen(
        ProcessLauncher(command, folder / "logs") if supervised else CommandLauncher(command),
        lambda url: TgiBackend(url, base, api_key=settings.backend_key),
        folder,
        base_model=ModelFolder(base).identity,
    )
