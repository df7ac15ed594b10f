"""The ASGI application: routes, who may call them, and answers that no route gives."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from rag_tuned_memory.serving.server.errors import Plain
from rag_tuned_memory.serving.server.information import InformationRoutes
from rag_tuned_memory.serving.server.lora_routes import LoraRoutes
from rag_tuned_memory.serving.server.native import NativeRoutes
from rag_tuned_memory.serving.server.openai_routes import OpenAIRoutes
from rag_tuned_memory.serving.server.service import Service
from rag_tuned_memory.serving.server.sse import GONE

Handler = Callable[[Request], Awaitable[Response]]


def build_app(service: Service) -> Starlette:
    """The application of a service. Works on asyncio and trio; uvicorn runs it on asyncio."""
    native, openai, lora = NativeRoutes(service), OpenAIRoutes(service), LoraRoutes(service)
    information = InformationRoutes(service)
    closed: dict[str, Handler] = {
        "/": native.compatible,
        "/invocations": native.compatible,
        "/generate": native.generate,
        "/generate_stream": native.generate_stream,
        "/v1/chat/completions": openai.chat,
        "/v1/completions": openai.completions,
        "/tokenize": information.tokenize,
        "/v1/load_lora_adapter": lora.load,
        "/v1/unload_lora_adapter": lora.unload,
    }
    opened: dict[str, Handler] = {
        "/": information.health,
        "/health": information.health,
        "/ping": information.health,
        "/info": information.info,
        "/metrics": information.metrics,
        "/v1/models": information.models,
    }
    routes = [_post(path, handler, service.options.api_key) for path, handler in closed.items()]
    routes += [Route(path, handler, methods=["GET"]) for path, handler in opened.items()]
    routes.append(_post("/chat_tokenize", information.chat_tokenize, None))
    origins = [service.options.allow_origin] if service.options.allow_origin else []
    cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    handlers = {HTTPException: _empty, Plain: _plain, ClientDisconnect: _gone}
    app = Starlette(routes=routes, middleware=[cors] if origins else [], exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


def _post(path: str, handler: Handler, key: str | None) -> Route:
    async def guarded(request: Request) -> Response:
        if key and not _knows(request, key):
            return Response(status_code=401)
        return await handler(request)

    return Route(path, guarded, methods=["POST"])


def _knows(request: Request, key: str) -> bool:
    """Whether the request has the key. As TGI has it, case does not matter."""
    given = request.headers.get("authorization", "").lower().encode()
    return hmac.compare_digest(given, f"bearer {key}".lower().encode())


async def _empty(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Response(status_code=error.status_code, headers=error.headers)


async def _plain(request: Request, error: Exception) -> Response:
    assert isinstance(error, Plain)
    return error.response()


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)
