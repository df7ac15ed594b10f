"""Settings, in one place: RTM_* environment variables, or arguments of the same names.

``RTM_HOME`` holds everything that is not told otherwise: models, the embedded store, adapters and runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ServerKind = Literal["tgi", "vllm"]
"""Servers that adapters can be checked and exported for."""


class Settings(BaseSettings):
    """What can be set; each field is also the environment variable ``RTM_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix="RTM_", extra="forbid", frozen=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".local" / "share" / "rag-tuned-memory")
    cache: Path = Field(default_factory=lambda: Path.home() / ".cache" / "rag-tuned-memory")
    """Models that can be pulled again."""
    store: str = ""
    """The episode store's URL; empty means ``sqlite:///<home>/memory.db``. ``weaviate://host:8080?grpc=50051`` is a
    Weaviate server."""
    weaviate_api_key: str | None = Field(default=None, repr=False)
    model: str = "SmolLM2-135M-Instruct"
    """The base model: a name that ``rtm pull`` knows, or a folder."""
    embedder: str = "all-MiniLM-L6-v2"
    """The embedding model: a name that ``rtm pull`` knows, a folder, or ``hashing`` (no weights, for tests)."""
    backend: str = ""
    """What serves the model: empty is this process; ``vllm+http://host:8000`` or ``tgi+http://host:8080``, several
    replicas separated by commas; ``openai+https://host/v1`` is the base model only; ``supervised`` and ``hook`` start
    the servers by ``serve_command``."""
    backend_model: str | None = None
    """The base model's name on that server, where it must be given (``openai+…``) or there are several (vLLM)."""
    backend_key: str | None = Field(default=None, repr=False)
    serve_command: str | None = None
    """``supervised``: the server's command line with ``{port}`` in it, which reads LORA_ADAPTERS (TGI's launcher, ``rtm
    serve-model``). ``hook``: a command with ``up`` and ``down URL``, see ``CommandLauncher``."""
    max_step_bytes: int = Field(default=1_000_000, gt=0)
    """A step larger than this (UTF-8 bytes of its JSON) is rejected."""
    teacher_url: str | None = None
    """Base URL of an OpenAI-compatible endpoint that writes further questions; none by default."""
    teacher_model: str | None = None
    teacher_key: str | None = Field(default=None, repr=False)
    serve_for: Annotated[tuple[ServerKind, ...], NoDecode] = ()
    """The servers, comma-separated, that adapters are made for: what they could not serve is not trained."""
    max_lora_rank: int | None = None
    """vLLM's ``--max-lora-rank``, where it is fixed already; a larger rank is not trained for ``vllm``."""

    @field_validator("serve_for", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip().lower() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @property
    def store_url(self) -> str:
        """The store's URL with the default filled in."""
        return self.store or f"sqlite:///{self.home / 'memory.db'}"

    @property
    def adapters_dir(self) -> Path:
        """Where the adapter registry lives."""
        return self.home / "adapters"

    @property
    def runs_dir(self) -> Path:
        """Where distillation runs keep datasets, checkpoints and reports."""
        return self.home / "runs"
