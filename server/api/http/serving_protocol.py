"""The HTTP protocol that is served: our words where uvicorn would use its own."""

from __future__ import annotations

from server.api.http.errors import error_json
from server.api.http.http_protocol import StreamingHttpProtocol

_NOT_HTTP = error_json(400, "The request is not valid HTTP/1.1.")
_NOT_HTTP_RESPONSE = b"\r\n".join(
    [
        b"HTTP/1.1 400 Bad Request",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(_NOT_HTTP),
        b"Connection: close",
        b"",
        _NOT_HTTP,
    ]
)


class ServingHttpProtocol(StreamingHttpProtocol):
    def send_400_response(self, msg: str) -> None:
        self.transport.write(_NOT_HTTP_RESPONSE)
        self.transport.close()

    def on_headers_complete(self) -> None:
        """An upgrade is passed over, as RFC 9110 (7.8) lets a server do: who wanted a WebSocket gets a
        reply that is none, and a connection that closes."""
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False
        # The router's patterns end with `$`, which overlooks a last line break: it would serve /metrics%0A as
        # /metrics, though to whoever guards or logs by path it is another.
        self.scope["path"] = self.scope["path"].replace("\n", "%0A")

    def _unsupported_upgrade_warning(self) -> None:
        """uvicorn would log advice to install a library, whenever a client asks for one."""
