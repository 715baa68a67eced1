"""What is answered before, or instead of, the application: statuses and sentences of ours, as bytes.

After each of them the connection ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from server.api.http.errors import error_response
from server.api.http.limits import HttpLimits

_LIMITS = HttpLimits()  # for the sentences


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    reason: str  # of the counter
    message: str
    code: str | None = None
    retry_after_s: int | None = None


class Refused(Exception):
    """The connection's bytes are not understood any further."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


NOT_HTTP = Refusal(400, "syntax", "The request is not valid HTTP/1.1.")
NO_HOST = Refusal(400, "syntax", "An HTTP/1.1 request has one Host header.")
BAD_HOST = Refusal(400, "syntax", "The Host header is not a host with an optional port.")
BAD_TARGET = Refusal(400, "syntax", "The request's target is not a path of this server.")
BAD_FRAMING = Refusal(
    400, "syntax", "A body has either a Content-Length or the Transfer-Encoding chunked."
)
BAD_CHUNKS = Refusal(400, "chunks", "The body is not validly chunked.")
TOO_MANY_CHUNKS = Refusal(400, "chunks", "The body has too many chunks for its size.")
TOO_LARGE = Refusal(413, "body", f"The body is larger than {_LIMITS.max_body_bytes} bytes.")
LONG_LINE = Refusal(
    414, "target", f"The request line is longer than {_LIMITS.max_line_bytes} bytes."
)
LARGE_HEADERS = Refusal(
    431,
    "headers",
    f"The headers are larger than {_LIMITS.max_header_bytes} bytes or more than "
    f"{_LIMITS.max_headers}.",
)
UNKNOWN_EXPECTATION = Refusal(417, "expect", "Expect can only be 100-continue.")
TOO_SLOW = Refusal(
    408, "deadline", f"The request did not arrive whole within {_LIMITS.receive_s:g} seconds."
)
TOO_MUCH_PIPELINED = Refusal(
    413, "pipeline", "Too much was sent before the answer to the request in front of it."
)
TOO_MANY_CONNECTIONS = Refusal(
    503, "connections", "The server has no place for another connection.", retry_after_s=1
)
TOO_MANY_BYTES = Refusal(
    503, "memory", "The server has no room for another request's body.", retry_after_s=1
)


def refusal_bytes(refusal: Refusal, request_id: bytes, *, is_head: bool = False) -> bytes:
    """The whole response; `is_head`: the method was HEAD, so without its body."""
    response = error_response(refusal.status, refusal.message, code=refusal.code)
    headers = [*response.raw_headers, (b"x-request-id", request_id), (b"connection", b"close")]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
    phrase = HTTPStatus(refusal.status).phrase.encode()
    lines = [b"HTTP/1.1 %d %b" % (refusal.status, phrase)]
    lines += [b"%b: %b" % header for header in headers]
    return b"\r\n".join([*lines, b"", b"" if is_head else bytes(response.body)])
