"""Receiving a JSON body within a limit."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from server.api.http.limits import HttpLimits
from server.errors import RequestError

MAX_BODY_BYTES = HttpLimits().max_body_bytes


async def read_json_body(request: Request) -> bytes:
    """Raises RequestError: 415 for another content type or coding, 413 above MAX_BODY_BYTES, 400 if it is
    cut."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise RequestError("The body must be JSON: Content-Type: application/json.", status=415)
    if any(
        coding.strip().lower() != "identity"
        for coding in request.headers.getlist("content-encoding")
    ):
        raise RequestError("The body must not be compressed: Content-Encoding.", status=415)
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise _too_large()
    except ClientDisconnect:
        raise RequestError("The body ended before its announced length.") from None
    return bytes(body)


def _too_large() -> RequestError:
    return RequestError(f"The body is larger than {MAX_BODY_BYTES} bytes.", status=413)
