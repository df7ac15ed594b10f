"""``rtm serve-model``: the base model and its adapters over HTTP, for laptops and tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rag_tuned_memory.adapters import AdapterRegistry
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.memory.wiring import load_settings
from rag_tuned_memory.models import locate, require

if TYPE_CHECKING:
    from rag_tuned_memory.serving.server.adapters import Given, Unknown

_NEEDED = ("starlette", "uvicorn", "prometheus_client", "llguidance")

Model = Annotated[
    str, typer.Option(envvar="RTM_MODEL", help="The base model: a name that `rtm pull` knows, or a folder.")
]
LoraAdapters = Annotated[
    str, typer.Option(envvar="LORA_ADAPTERS", show_envvar=True, help="name=/path,name=/path: adapters to serve.")
]
Adapter = Annotated[
    list[str] | None, typer.Option(help="An adapter of the registry, such as alice-v7; can be repeated.")
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="API_KEY", show_envvar=True, help="Who calls must send it as Bearer.")
]


def serve_model(
    model: Model = "",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one; the first line says which.")] = 8080,
    lora_adapters: LoraAdapters = "",
    adapter: Adapter = None,
    api_key: ApiKey = None,
    max_concurrent_requests: Annotated[int, typer.Option(min=1, help="More than these get 429.")] = 128,
    max_input_tokens: Annotated[int | None, typer.Option(min=1, help="Of a prompt.")] = None,
    max_total_tokens: Annotated[int, typer.Option(min=2, help="Of prompt and answer.")] = 1024,
    request_logprobs: Annotated[
        bool,
        typer.Option(envvar="REQUEST_LOGPROBS", help="decoder_input_details scores the prompt."),
    ] = False,
    unknown_adapter: Annotated[
        str, typer.Option(help="refuse; or base, which answers in silence from the base model as TGI does.")
    ] = "refuse",
    cors_allow_origin: Annotated[str | None, typer.Option(help="Web pages of this origin may call; * for all.")] = None,
    graceful_termination_timeout: Annotated[
        int, typer.Option(min=0, help="Seconds that requests may go on after SIGTERM.")
    ] = 90,
    device: Annotated[str | None, typer.Option(help="A torch device; by default the GPU where there is one.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32; by default what is fast here.")
    ] = None,
) -> None:
    """Serve model and adapters in TGI's and OpenAI's protocol: for laptops and tests, NOT for production."""
    for module in _NEEDED:
        require(module, extra="serve")
    from rag_tuned_memory.serving.local import LocalBackend
    from rag_tuned_memory.serving.server.run import Binding, serve
    from rag_tuned_memory.serving.server.service import Options
    from rag_tuned_memory.serving.server.validate import Limits

    settings = load_settings()
    limits = Limits(
        max_concurrent_requests=max_concurrent_requests,
        max_input_tokens=max_total_tokens - 1 if max_input_tokens is None else max_input_tokens,
        max_total_tokens=max_total_tokens,
    )
    if limits.max_input_tokens >= limits.max_total_tokens:
        raise InvalidInput("--max-input-tokens must be less than --max-total-tokens: an answer needs room too")
    options = Options(
        limits=limits,
        api_key=api_key or None,
        request_logprobs=request_logprobs,
        unknown_adapter=_unknown(unknown_adapter),
        allow_origin=cors_allow_origin,
    )
    binding = Binding(host, port, graceful_termination_timeout)
    given = _adapters(lora_adapters, adapter or [], AdapterRegistry(settings.adapters_dir))
    folder = locate(model or settings.model, settings.cache)
    _say("for laptops and tests, not for production: one process, no isolation; use TGI or vLLM there")
    if not binding.local and not options.api_key:
        _say(f"WARNING: whoever reaches {host} can use and load adapters here: give an --api-key")
    if options.unknown_adapter == "base":
        _say("WARNING: unknown adapters are answered by the base model in silence, as TGI does")
    serve(LocalBackend(folder, device=device, dtype=dtype), given, options, binding, _say)


COMMANDS = (serve_model,)


def _unknown(given: str) -> Unknown:
    if given == "base":
        return "base"
    if given == "refuse":
        return "refuse"
    raise InvalidInput(f"{given!r} must be refuse or base", place="--unknown-adapter")


def _adapters(listed: str, names: list[str], registry: AdapterRegistry) -> list[Given]:
    """The listed ones, and those of the registry: their files are compared with the manifest, and they are proven."""
    from rag_tuned_memory.serving.server.adapters import Given, parse_adapters

    found = {one.name: one for one in parse_adapters(listed)}
    for name in names:
        found[name] = Given(name, Path(registry.path(name)), registry.get(name).fingerprint)
    return list(found.values())


def _say(line: str) -> None:
    print(f"rtm serve-model: {line}", flush=True)
