"""Reading a request's body as axum does: content type, size, syntax, shape."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from rag_tuned_memory.serving.server.errors import Plain
from rag_tuned_memory.serving.server.wire_json import BadJson, Shape, read


async def read_body(request: Request, shape: Shape, *, limit: int) -> Any:
    """The body's value. Raises Plain."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Plain(415, "Expected request with `Content-Type: application/json`")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise Plain(413, "Failed to buffer the request body: length limit exceeded")
    try:
        return read(bytes(data), shape)
    except BadJson as error:
        if error.syntax:
            raise Plain(400, f"Failed to parse the request body as JSON: {error}") from None
        raise Plain(422, f"Failed to deserialize the JSON body into the target type: {error}") from None
