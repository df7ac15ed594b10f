"""What a request can be refused with, and how it is told: as JSON, as plain text, or as an event of a stream."""

from __future__ import annotations

from starlette.responses import PlainTextResponse, Response

from rag_tuned_memory.errors import AdapterNotLoaded, InvalidInput, PromptTooLong, RagTunedMemoryError
from rag_tuned_memory.serving.server.shapes import compact


class Refused(Exception):
    """A request that is not answered: HTTP status, text, and TGI's ``error_type``."""

    def __init__(self, status: int, error: str, error_type: str) -> None:
        self.status, self.error, self.error_type = status, error, error_type
        super().__init__(error)

    def response(self) -> Response:
        """As the body of an answer."""
        return json_response(self.body(), self.status)

    def body(self) -> dict[str, str]:
        """As a native route tells it, in a stream too."""
        return {"error": self.error, "error_type": self.error_type}

    def openai_event(self) -> dict[str, dict[str, str | int]]:
        """As an event of an OpenAI stream, where TGI says 422 whatever it was."""
        return {"error": {"message": self.error, "http_status_code": 422}}


class Plain(Exception):
    """A body that cannot be read: told as plain text, as axum does."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)

    def response(self) -> Response:
        """As an answer."""
        return PlainTextResponse(str(self), self.status)


def validation(message: str) -> Refused:
    """The request is well formed, but cannot be done."""
    return Refused(422, f"Input validation error: {message}", "validation")


def overloaded() -> Refused:
    """As many requests as may run at a time run."""
    return Refused(429, "Model is overloaded", "overloaded")


def failed(message: str) -> Refused:
    """The model failed, or was stopped."""
    return Refused(424, f"Request failed during generation: Server error: {message}", "generation")


def of_backend(error: RagTunedMemoryError) -> Refused:
    """What the local backend raised."""
    if isinstance(error, AdapterNotLoaded | InvalidInput | PromptTooLong):
        return validation(str(error))
    return failed(str(error))


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer in the router's way of writing it."""
    return Response(compact(value), status, headers, "application/json")
