"""What a rollout has done so far, kept so that whoever comes after a crash can go on."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag_tuned_memory.errors import BackendError
from rag_tuned_memory.serving.base import Fingerprint
from rag_tuned_memory.serving.rollout.launch import Server

_FILE = "rollout.json"


class Adapter(BaseModel):
    """An adapter that servers are started with, and what proves that they serve it."""

    model_config = ConfigDict(frozen=True)

    path: Path
    fingerprint: Fingerprint


class RolloutState(BaseModel):
    """Which servers there are. At most one answers; the others are on their way in or out."""

    model_config = ConfigDict(frozen=True)

    adapters: dict[str, Adapter] = Field(default_factory=dict)
    """What the next server is started with."""
    current: Server | None = None
    """Answers."""
    coming: Server | None = None
    """Was started, and is not proven yet."""
    leaving: tuple[Server, ...] = ()
    """Answered before, and finishes what it had begun."""

    def save(self, folder: Path) -> None:
        """Put it on the disk in one step. Blocking."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{_FILE}.part"
        with part.open("wb") as stream:
            stream.write(self.model_dump_json(indent=1).encode())
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(folder / _FILE)

    @classmethod
    def load(cls, folder: Path) -> RolloutState:
        """What was saved last; empty where nothing was. Blocking. Raises BackendError where it cannot be read."""
        path = folder / _FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError) as error:
            raise BackendError(
                f"the state of the rollout cannot be read: {error}",
                place=str(path),
                remedy="Stop the servers that run, and delete the file: they are started anew.",
            ) from error
