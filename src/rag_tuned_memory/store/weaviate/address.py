"""Which Weaviate, and how to use it.

``weaviate://host:8080?grpc=50051``, ``weaviates://cluster.example`` (TLS), ``weaviate+embedded:///folder``.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.trajectory import describe

PLAIN, SECURE, EMBEDDED = "weaviate", "weaviates", "weaviate+embedded"
_CLOUD = (".weaviate.cloud", ".weaviate.network")

Port = Annotated[int, Field(ge=1, le=65535)]
Index = Literal["hnsw", "hnsw-rq", "flat", "flat-rq", "dynamic"]


def _collection_prefix(text: str) -> str:
    if not (text.isascii() and text.isalnum() and text[0].isupper()):
        raise ValueError("it must be of letters and digits, a capital first")
    return text


class Address(BaseModel):
    """A server; the fields from ``grpc_port`` on are settings in the URL, that one as ``grpc``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    port: Port
    """Answers REST."""
    grpc_host: str
    secure: bool = False
    folder: str | None = None
    """Of an embedded server's data; this process starts it."""
    grpc_port: Port
    prefix: Annotated[str, AfterValidator(_collection_prefix)] = "Rtm"
    """Begins the names of all collections."""
    index: Index = "hnsw"
    """How vectors of new collections are indexed. ``-rq`` quantises them (rotational, 8 bits)."""
    replicas: int = Field(default=1, ge=1)
    """On how many nodes new collections lie."""
    consistency: Literal["ONE", "QUORUM", "ALL"] = "QUORUM"
    """How many replicas answer before a read or a write counts."""
    deadline: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds that a call may take, tries again included."""
    version: str = "1.39.4"
    """Of an embedded server."""

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if (self.host, self.port) == (self.grpc_host, self.grpc_port):
            raise ValueError(f"REST and gRPC cannot both be at port {self.port} of one host")
        return self

    def __str__(self) -> str:
        if self.folder is not None:
            return f"{EMBEDDED}://{self.folder}"
        return f"{SECURE if self.secure else PLAIN}://{self.host}:{self.port}?grpc={self.grpc_port}"


def parse_address(url: str) -> Address:
    """The address that a URL names.

    Raises:
        InvalidInput: an unknown scheme or setting, a setting with an impossible value, or a key in the URL.
    """
    parts = urlsplit(url)
    place = f"store (RTM_STORE) {url.rpartition('@')[2]!r}"
    if parts.username or parts.password:
        remedy = "Take it out and set RTM_WEAVIATE_API_KEY."
        raise InvalidInput("an API key must not stand in the URL", place=place, remedy=remedy)
    try:
        given = _server(parts.scheme, parts.hostname, parts.port, parts.path)
        return Address.model_validate(given | _settings(parts.query))
    except ValidationError as error:
        reason = describe(error)
    except ValueError as error:
        reason = str(error)
    raise InvalidInput(reason, place=place, remedy="Write weaviate://host:8080?grpc=50051, or weaviates:// with TLS.")


_SETTINGS = {"grpc": "grpc_port"} | {
    name: name for name in ("prefix", "index", "replicas", "consistency", "deadline", "version")
}
"""The field of each setting."""


def _settings(query: str) -> dict[str, object]:
    given = parse_qsl(query, keep_blank_values=True)
    for name, _ in given:
        if name not in _SETTINGS:
            raise ValueError(f"there is no setting {name!r}, only {', '.join(_SETTINGS)}")
    return {_SETTINGS[name]: text for name, text in given}


def _server(scheme: str, host: str | None, port: int | None, path: str) -> dict[str, object]:
    """The fields that the URL before its settings says."""
    if scheme == EMBEDDED:
        if not path.strip("/"):
            raise ValueError("it names no folder for the embedded server's data")
        local = "127.0.0.1"
        return {"host": local, "port": port or 8079, "grpc_host": local, "grpc_port": 50050, "folder": path}
    if scheme not in (PLAIN, SECURE) or not host:
        raise ValueError("it names no server")
    secure = scheme == SECURE
    cloud = secure and host.endswith(_CLOUD)
    return {
        "host": host,
        "port": port or (443 if secure else 8080),
        "grpc_host": f"grpc-{host}" if cloud else host,
        "grpc_port": 443 if cloud else 50051,
        "secure": secure,
    }
