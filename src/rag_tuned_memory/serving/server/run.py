"""The process: load everything, open the port, serve, drain on SIGTERM."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

import anyio
import uvicorn

from rag_tuned_memory.errors import BackendUnavailable, InvalidInput
from rag_tuned_memory.serving.local import LocalBackend
from rag_tuned_memory.serving.server.adapters import Given
from rag_tuned_memory.serving.server.app import build_app
from rag_tuned_memory.serving.server.service import Options, Service

_BACKLOG = 2048


@dataclass(frozen=True)
class Binding:
    """Where to listen. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 8080
    drain_seconds: int = 90
    """How long requests that run may take after SIGTERM; TGI's GRACEFUL_TERMINATION_TIMEOUT."""

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def serve(
    backend: LocalBackend,
    adapters: Sequence[Given],
    options: Options,
    binding: Binding,
    say: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT. Blocks; closes the backend. To be called in the main thread.

    The port is opened when model and adapters are loaded, so that nobody gets half a server. On SIGTERM new
    connections are refused, requests that run are answered, and the function returns; what is still running after
    ``drain_seconds`` is cut. While it loads, a signal ends the process at once.

    Args:
        backend: the model; nothing is loaded yet.
        adapters: loaded before the port is opened.
        options: see there.
        binding: see there.
        say: gets lines for people.

    Raises:
        BackendUnavailable: the port is taken.
        InvalidInput: the limits do not fit the model, or an adapter's name cannot be.
        ModelError, AdapterError: something cannot be loaded.
    """
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        anyio.run(_serve, backend, adapters, options, binding, say)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _serve(
    backend: LocalBackend, adapters: Sequence[Given], options: Options, binding: Binding, say: Callable[[str], None]
) -> None:
    service = Service(backend, options)
    try:
        context, most = await backend.start(), options.limits.max_total_tokens
        if most > context:
            raise InvalidInput(f"--max-total-tokens {most} is more than the model's context of {context}")
        await service.adapters.start(adapters)
        config = uvicorn.Config(
            build_app(service),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=binding.drain_seconds,
            server_header=False,
        )
        server = _Server(config, service)
        with _listening(binding) as listener:
            # uvicorn's own are there a moment later, and it raises the signal again when it is done: to these.
            for one in (signal.SIGTERM, signal.SIGINT):
                signal.signal(one, server.handle_exit)
            listener.listen(_BACKLOG)  # so that who reads the line below can connect
            host, port = listener.getsockname()[:2]
            say(f"serving {service.folder.path.name} on http://{f'[{host}]' if ':' in host else host}:{port}")
            await server.serve(sockets=[listener])
    finally:
        with anyio.CancelScope(shield=True):
            await backend.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.state = "draining"  # for those that are still connected and ask /info
        super().handle_exit(sig, frame)


def _listening(binding: Binding) -> socket.socket:
    """A socket bound to the address. Raises BackendUnavailable."""
    try:
        found = socket.getaddrinfo(binding.host, binding.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(found[0], socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[4])
    except (OSError, OverflowError) as error:
        raise BackendUnavailable(
            f"cannot listen: {error}", place=f"{binding.host}:{binding.port}", remedy="Choose another --port."
        ) from error
    return listener
