"""What is known of an adapter: where it came from, what it learned, how it was judged, which files it has."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from rag_tuned_memory.adapters.gate import Decision
from rag_tuned_memory.distil.naming import namespace_slug
from rag_tuned_memory.distil.recipe import Recipe
from rag_tuned_memory.errors import AdapterNotFound
from rag_tuned_memory.serving.base import Fingerprint
from rag_tuned_memory.trajectory import Namespace, Time

FORMAT: Final = 1
"""The manifest's format; a reader refuses a later one."""

_NAME = re.compile(r"([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)-v([1-9][0-9]{0,8})")


def _finite_or_none(value: Any) -> Any:
    """JSON has no NaN and no infinity: what is no number becomes None, which the gate never passes."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Metric = Annotated[float | None, BeforeValidator(_finite_or_none)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Learned(_Frozen):
    """One trajectory that the adapter was trained on, as it was then."""

    trajectory_id: str
    content_hash: str


class Watermark(_Frozen):
    """How far into the store the adapter has learned: what lies beyond is news to it.

    ``sequence`` is the highest of the store; ``time`` and ``recorded_at`` are of the newest trajectory it learned.
    """

    sequence: int = Field(ge=0)
    time: Time | None = None
    recorded_at: Time | None = None


class TrainStats(_Frozen):
    """What the training took; ``tokens`` counts each pass over an example, prompts included."""

    seconds: float = Field(ge=0)
    tokens: int = Field(ge=0)
    tokens_per_second: float = Field(ge=0)
    peak_memory_bytes: int | None = Field(default=None, ge=0)


class FileEntry(_Frozen):
    """One file of an adapter's folder."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class Draft(_Frozen):
    """What a distillation run knows of its adapter; the registry makes a ``Manifest`` of it.

    ``metrics`` has the figures of ``distil.evaluation.Evaluation``. ``parent`` is the adapter that served when this one
    was made (lineage only: each is trained from the base model). ``versions`` are of the libraries in use.
    """

    base_model: str
    base_revision: str
    recipe: Recipe
    dataset_sha256: Sha256
    learned: tuple[Learned, ...]
    watermark: Watermark
    metrics: dict[str, Metric]
    fingerprint: Fingerprint
    train: TrainStats
    parent: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)


class Manifest(Draft):
    """All of an adapter's lineage. Written once, at registration; what changes is in the state log."""

    format: Literal[1] = FORMAT
    name: str
    namespace: Namespace
    version: int = Field(ge=1)
    created_at: AwareDatetime
    decision: Decision
    files: dict[str, FileEntry]
    """By path relative to the adapter's folder, with ``/``."""


def adapter_name(namespace: str, version: int) -> str:
    """The name of a version: ``alice-v7``, with only characters that every inference server takes."""
    return f"{namespace_slug(namespace)}-v{version}"


def parse_name(name: str) -> tuple[str, int]:
    """The slug and the version in an adapter's name.

    Raises:
        AdapterNotFound: no adapter can have this name (so no path can be smuggled in as one).
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise AdapterNotFound(
            f"{name!r} is no adapter's name", remedy="Names look like 'alice-v7'; `rtm adapters list` shows them."
        )
    return match[1], int(match[2])
