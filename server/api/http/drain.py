"""The end of a server in good order: new completions are refused, running ones finish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.http.errors import send_error
from server.api.http.request_log import note_error

_PATH = "/v1/completions"
# Until then a balancer has seen that /ready is red, and asks another server.
_HEADERS = [(b"retry-after", b"5"), (b"connection", b"close")]
_MESSAGE = "The server is stopping and takes no new requests; send it again, to another one."


@dataclass
class Drain:
    """Whether it has begun, and who is still served."""

    is_on: bool = False
    num_active: int = 0  # completions requests, and streams that are resumed, with a connection

    def begin(self) -> None:
        self.is_on = True


class DrainMiddleware:
    """Pure ASGI, in front of the router. Whoever has a stream running here may still resume it."""

    def __init__(
        self, app: ASGIApp, drain: Drain, on_refused: Callable[[], None] | None = None
    ) -> None:
        self._app = app
        self._drain = drain
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_completion(scope["path"]):
            await self._app(scope, receive, send)
            return
        if self._drain.is_on and scope["method"] == "POST":
            if self._on_refused is not None:
                self._on_refused()
            note_error(scope, 503, "draining")
            await send_error(send, 503, _MESSAGE, code="draining", headers=_HEADERS)
            return
        self._drain.num_active += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._drain.num_active -= 1


def _is_completion(path: str) -> bool:
    return path == _PATH or path.startswith(f"{_PATH}/")
