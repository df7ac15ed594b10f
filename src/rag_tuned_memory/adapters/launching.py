"""The commands that make a server serve an exported adapter."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field

from rag_tuned_memory.adapters.exporting import Exported
from rag_tuned_memory.serving.compatibility import least_max_lora_rank


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started, and what a running one is told; ``load`` is empty where it takes adapters at start only.

    Words are unquoted; ``shell`` and ``load_shell`` are for a shell.
    """

    environment: dict[str, str]
    command: tuple[str, ...]
    load: tuple[str, ...] = field(default=())

    @property
    def shell(self) -> str:
        """The start as one line."""
        variables = [f"{name}={shlex.quote(text)}" for name, text in self.environment.items()]
        return " ".join([*variables, shlex.join(self.command)])

    @property
    def load_shell(self) -> str:
        """The load as one line; empty if there is none."""
        return shlex.join(self.load)


def launch(exported: Exported) -> Launch:
    """How the server that the adapter was exported for is to be started, with this adapter alone."""
    if exported.server == "tgi":
        return Launch(
            {"LORA_ADAPTERS": f"{exported.name}={exported.server_path}"},
            ("text-generation-launcher", "--model-id", exported.server_base, "--port", "8080"),
        )
    body = {"lora_name": exported.name, "lora_path": exported.server_path}
    return Launch(
        {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
        (
            *("vllm", "serve", exported.server_base, "--port", "8000", "--enable-lora"),
            *("--max-lora-rank", str(least_max_lora_rank(exported.rank))),
        ),
        (
            *("curl", "--fail-with-body", "http://localhost:8000/v1/load_lora_adapter"),
            *("-H", "Content-Type: application/json", "-d", json.dumps(body)),
        ),
    )
