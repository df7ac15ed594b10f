from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.fleet import Fleet
from rag_tuned_memory.serving.local import LocalBackend
from rag_tuned_memory.serving.openai_compatible import OpenAICompatible
from rag_tuned_memory.serving.opening import open_backend
from rag_tuned_memory.serving.rollout import BlueGreen
from rag_tuned_memory.serving.tgi import TgiBackend
from rag_tuned_memory.serving.vllm import VllmBackend
from rag_tuned_memory.settings import Settings


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, LocalBackend),
        ({"backend": "vllm+http://localhost:8000"}, VllmBackend),
        ({"backend": "tgi+https://tgi.example"}, TgiBackend),
        ({"backend": "tgi+http://a:80, tgi+http://b:80"}, Fleet),
        ({"backend": "openai+http://localhost:1/v1", "backend_model": "m"}, OpenAICompatible),
        ({"backend": "supervised", "serve_command": "rtm serve-model --port {port}"}, BlueGreen),
        ({"backend": "hook", "serve_command": "/opt/rollout"}, BlueGreen),
    ],
)
def test_the_settings_choose(given: dict[str, Any], kind: type, tiny_model: Path, tmp_path: Path) -> None:
    assert isinstance(open_backend(Settings(home=tmp_path, **given), tiny_model), kind)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backend": "http://localhost:8000"}, "RTM_BACKEND.*vllm"),
        ({"backend": "vllm+localhost"}, "RTM_BACKEND"),
        ({"backend": "openai+http://localhost:1/v1"}, "RTM_BACKEND_MODEL"),
        ({"backend": "supervised"}, "RTM_SERVE_COMMAND"),
        ({"backend": "supervised", "serve_command": "tgi"}, r"\{port\}"),
    ],
)
def test_what_cannot_be_opened_is_named(given: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        open_backend(Settings(home=tmp_path, **given), tiny_model)
