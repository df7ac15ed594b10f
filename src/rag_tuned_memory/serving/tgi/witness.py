"""A silent connection that tells whether the server is still the process that it was.

TGI answers a request for an adapter that it does not have from the base model. A proof that it has one holds for as
long as the process lives, and no route tells one process from the next. A connection does: it ends with the process.
"""

from __future__ import annotations

import socket

import anyio.to_thread
import httpx

from rag_tuned_memory.errors import BackendUnavailable
from rag_tuned_memory.serving.tgi.failures import NOT_THERE


class Witness:
    """An open connection on which nothing is ever sent. Behind a proxy it tells of the proxy, not of the server."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        # So that the system notices a machine that went away without a word.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        self._connection = connection

    @classmethod
    async def of(cls, url: httpx.URL, seconds: float, place: str) -> Witness:
        """Connect to the server of ``url`` within ``seconds``. Raises BackendUnavailable, which names ``place``."""
        address = (url.host, url.port or (443 if url.scheme == "https" else 80))
        try:
            return cls(await anyio.to_thread.run_sync(socket.create_connection, address, seconds))
        except OSError as error:
            raise BackendUnavailable(
                f"no connection to the server ({error})",
                place=place,
                remedy=NOT_THERE,
            ) from error

    def alive(self) -> bool:
        """Whether the process at the other end still lives. Does not block."""
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        # The end of the connection; or an HTTP server's parting word, after which it closes it.
        return False

    def close(self) -> None:
        """Close the connection; it is dead from here on."""
        self._connection.close()
