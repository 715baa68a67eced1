"""X-Request-Id: the client's own if it is short and harmless, else one of ours; on every reply.

The outermost layer: it also tells whoever counts replies of each.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = "continuo.request_id"  # in the ASGI scope, as text

_HEADER = b"x-request-id"
_HARMLESS = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class RequestIdMiddleware:
    def __init__(self, app: ASGIApp, on_response: Callable[[int], None]) -> None:
        """`on_response` is given the status of every reply that begins."""
        self._app = app
        self._on_response = on_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        scope[REQUEST_ID] = request_id.decode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._on_response(message["status"])
                headers = [*message["headers"], (_HEADER, request_id)]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_id)


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == _HEADER and _HARMLESS.fullmatch(value):
            return bytes(value)
    return b"req-" + uuid.uuid4().hex.encode()
