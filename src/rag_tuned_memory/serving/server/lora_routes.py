"""Adapters that come and go while the server runs, as vLLM's routes have it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from rag_tuned_memory.errors import AdapterNotLoaded, InvalidInput, RagTunedMemoryError
from rag_tuned_memory.serving.server.bodies import read_body
from rag_tuned_memory.serving.server.errors import json_response
from rag_tuned_memory.serving.server.service import Service
from rag_tuned_memory.serving.server.shapes import LOAD_LORA, UNLOAD_LORA


class LoraRoutes:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def load(self, request: Request) -> Response:
        """Load an adapter from a folder of this machine under a name that is not in use."""
        found = await read_body(request, LOAD_LORA, limit=self._service.limits.payload_limit)
        name, path = found["lora_name"], found["lora_path"]
        if not name.strip() or not path:
            return _error(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        if found.get("load_inplace"):
            message = "'load_inplace' is refused: names are never given other weights. Load it under a new name."
            return _error(400, "InvalidUserInput", message)
        if name in self._service.adapters.paths:
            message = f"The lora adapter '{name}' has already been loaded. Load it under a new name."
            return _error(400, "InvalidUserInput", message)
        if not await _is_folder(path):
            return _error(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        try:
            await self._service.adapters.load(name, path)
        except InvalidInput as error:
            return _error(400, "InvalidUserInput", str(error))
        except RagTunedMemoryError as error:
            return _error(500, "InternalServerError", str(error))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        """Refuse new requests for an adapter, and answer when those that ran are done and it is gone."""
        found = await read_body(request, UNLOAD_LORA, limit=self._service.limits.payload_limit)
        name = found["lora_name"]
        if not name:
            return _error(400, "InvalidUserInput", "'lora_name' needs to be provided to unload a LoRA adapter.")
        try:
            await self._service.adapters.unload(name)
        except AdapterNotLoaded as error:
            return _error(404, "NotFoundError", str(error))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


async def _is_folder(path: str) -> bool:
    import anyio

    try:
        return await anyio.Path(path).is_dir()
    except (OSError, ValueError):
        return False


def _error(status: int, kind: str, message: str) -> Response:
    return json_response({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)
