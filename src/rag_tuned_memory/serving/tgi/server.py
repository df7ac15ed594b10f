"""What a TGI server says of itself: limits, health, figures, tokenizer."""

from __future__ import annotations

import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rag_tuned_memory.errors import BackendError, BackendUnavailable
from rag_tuned_memory.models.folder import INFO_FILE, read_info
from rag_tuned_memory.serving.base import Message
from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.health import Health
from rag_tuned_memory.serving.tgi.client import TgiClient
from rag_tuned_memory.serving.tgi.failures import protocol_error, refusal

_SAMPLE = (Message("system", "Ünïcode 12345\n\tif x != 0: …"), Message("user", "日本 <b>&amp;</b>  'quoted' 😀"))
"""Tokenised by both sides to tell two tokenizers apart."""


class ServerInfo(BaseModel):
    """A server's ``/info``."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_id: str
    """The model as the server was told to load it: a name on the hub or a path of its own."""
    model_sha: str | None = None
    """The revision, for a model from the hub."""
    max_input_tokens: int = Field(ge=1)
    max_total_tokens: int = Field(ge=1)
    """Of prompt and answer."""
    max_concurrent_requests: int = Field(ge=1)
    max_stop_sequences: int = Field(default=4, ge=0)
    version: str = ""


async def health(client: TgiClient) -> Health:
    """What ``/health`` finds; a check by the server that the model still computes. Never raises for a sick server."""
    try:
        response = await client.get("/health")
    except BackendUnavailable as error:
        client.patience.check_open()
        # Without a cause, our own time limit ended it.
        return Health("refused" if error.__cause__ else "hung", error.message)
    if response.status_code != 200:
        return Health("unhealthy", refusal(response.status_code, response.content, client.place).message)
    return Health("ready")


async def info(client: TgiClient) -> ServerInfo:
    """The server's limits and model. Raises BackendUnavailable or BackendError."""
    body = await _asked(client, "/info")
    try:
        return ServerInfo.model_validate_json(body)
    except ValidationError as error:
        raise protocol_error(f"/info lacks {error.errors()[0]['loc']}", client.place) from error


async def metrics(client: TgiClient) -> str:
    """The server's figures in Prometheus' text form. Raises BackendUnavailable or BackendError."""
    return (await _asked(client, "/metrics")).decode(errors="replace")


async def check_same_model(client: TgiClient, found: ServerInfo, folder: ModelFolder) -> None:
    """Raise BackendError where the server plainly serves another model than ``folder`` holds.

    The revision is compared where both are known, and a prompt is tokenised by both sides. Other weights with the same
    tokenizer are not noticed here; the canaries of an adapter notice them.
    """
    if (folder.path / INFO_FILE).is_file():
        source = (await anyio.to_thread.run_sync(read_info, folder.path)).source
        ours = source.rpartition("@")[2] if source.startswith("hub:") else None
        if ours and found.model_sha and ours != found.model_sha:
            raise _other(client, found, folder, f"revision {found.model_sha} there, {ours} here")
    text = await folder.text(_SAMPLE)
    response = await client.post("/tokenize", {"inputs": text})
    if response.status_code != 200:
        raise refusal(response.status_code, response.content, client.place)
    if _ids(response.content, client.place) != await folder.ids(_SAMPLE):
        raise _other(client, found, folder, "it splits text into other tokens")


def _other(client: TgiClient, found: ServerInfo, folder: ModelFolder, how: str) -> BackendError:
    return BackendError(
        f"the server serves {found.model_id!r}, which is not the model in {folder.path}: {how}",
        place=client.place,
        remedy="Start it with this model (MODEL_ID), or name the folder of the model that it serves.",
    )


async def _asked(client: TgiClient, path: str) -> bytes:
    response = await client.get(path)
    if response.status_code != 200:
        raise refusal(response.status_code, response.content, client.place)
    return response.content


class _Token(BaseModel):
    id: int


def _ids(body: bytes, place: str) -> list[int]:
    try:
        return [token.id for token in TypeAdapter(list[_Token]).validate_json(body)]
    except ValidationError as error:
        raise protocol_error(f"/tokenize: {error.errors()[0]['msg']}", place) from error
