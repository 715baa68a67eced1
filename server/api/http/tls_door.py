"""TLS in front of the HTTP protocol: a connection counts, and its time runs, before its handshake.

uvloop's own way gives a handshake a minute, and tells nobody of the connection before its end.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

from server.api.http.connections import Connections


def tls_context(certfile: str, keyfile: str) -> ssl.SSLContext:
    """Python's defaults: TLS 1.2 and later. The pair has been checked when the server started."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certfile, keyfile)
    return context


class TlsDoor(asyncio.Protocol):
    """What uvicorn takes for its protocol. It gives the socket to the real one, behind TLS."""

    def __init__(
        self,
        *,
        connections: Connections,
        make_protocol: Callable[..., asyncio.Protocol],
        context: ssl.SSLContext,
        **arguments: Any,
    ) -> None:
        self._all = connections
        self._make_protocol = make_protocol
        self._context = context
        self._arguments = arguments
        self._handshakes: set[Any] = arguments["server_state"].tasks  # uvicorn's end waits for them
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """`start_tls` would lose a first packet that comes at once: uvloop reads whatever is said here."""
        try:
            sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        except OSError:  # no descriptor is left, or the client
            self._all.refused["handshake"] += 1
        else:
            self._admit(sock)
        transport.abort()  # its own descriptor only

    def _admit(self, sock: socket.socket) -> None:
        if not self._all.admit(self, self._loop.time()):
            self._all.refused["connections"] += 1
            sock.close()
            return
        self._task = self._loop.create_task(self._shake_hands(sock))
        self._handshakes.add(self._task)
        self._task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, sock: socket.socket) -> None:
        limits = self._all.limits
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._make_protocol(**self._arguments, behind=self),
                sock,
                ssl=self._context,
                ssl_handshake_timeout=limits.silent_s,
                ssl_shutdown_timeout=limits.silent_s,  # type: ignore[call-arg]  # uvloop has it
            )
        except OSError:  # ssl.SSLError is one, and so is time that is up
            self._all.refused["handshake"] += 1
        finally:
            self._all.leave(self)

    @property
    def num_unsent_bytes(self) -> int:
        return 0

    def evict(self) -> None:
        if self._task is not None:
            self._task.cancel()
