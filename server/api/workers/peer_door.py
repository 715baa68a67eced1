"""A worker's own door, a Unix socket that only the other workers know: what they hand over is served as if it
had arrived here.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.http.arrivals import Releasing
from server.api.http.serving_protocol import ServingHttpProtocol
from server.api.workers.upstream import SENT_BYTES

COUNTS_PATH = "/counts"  # of the peers' own door
_BACKLOG = 512


class PeerApp:
    """Pure ASGI: all that is served anyway, and what this worker has counted."""

    def __init__(self, app: ASGIApp, counts: Callable[[], bytes]) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != COUNTS_PATH:
            await self._app(scope, receive, send)
            return
        body = self._counts()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class PeerProtocol(ServingHttpProtocol):
    def __init__(self, *args: Any, peer_app: ASGIApp, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = Releasing(peer_app)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        sock: socket.socket = transport.get_extra_info("socket")
        # on the way to the other worker; what a slow client there does not take waits here
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENT_BYTES)
        super().connection_made(transport)


def listen_for_peers(path: str) -> socket.socket:
    """Of mode 0600, in a directory of mode 0700."""
    Path(path).unlink(missing_ok=True)  # left behind by a worker that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(_BACKLOG)
    return listener
