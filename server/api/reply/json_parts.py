"""Sending a JSON reply that is made in parts: at once if it is small, else part by part."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_WHOLE_BYTES = 1 << 16
_JSON = (b"content-type", b"application/json")

_encode = msgspec.json.Encoder().encode


class JsonPartsResponse(Response):
    """For a reply that has no run behind it which would have to end with the client."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        super().__init__()
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(self._parts, send, lambda: False)


def item_parts(entries: Iterable[object], num_in_part: int, last: bytes = b"") -> Iterator[bytes]:
    """The items of a JSON list, without its brackets; `last` are some that are JSON already."""
    iterator = iter(entries)
    separator = b""
    while some := list(islice(iterator, num_in_part)):
        yield separator + _encode(some)[1:-1]
        separator = b","
    if last:
        yield separator + last


async def send_json(parts: Iterator[bytes], send: Send, is_gone: Callable[[], bool]) -> None:
    """Status 200. Between the parts of a large reply others get their turn; the rest of it is not
    made once the client `is_gone`."""
    body = bytearray()
    for part in parts:
        body += part
        if len(body) > _WHOLE_BYTES:
            await _send_in_parts(bytes(body), parts, send, is_gone)
            return
    headers = [_JSON, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(body)})


async def _send_in_parts(
    first: bytes, rest: Iterator[bytes], send: Send, is_gone: Callable[[], bool]
) -> None:
    """Its length is not known before it is made, and then it would be in memory as a whole."""
    await send({"type": "http.response.start", "status": 200, "headers": [_JSON]})
    body = bytearray(first)
    for part in rest:
        if len(body) > _WHOLE_BYTES:
            await send({"type": "http.response.body", "body": bytes(body), "more_body": True})
            body.clear()
        body += part
        await asyncio.sleep(0)
        if is_gone():
            return  # the connection is closed, so nobody takes this for the whole
    await send({"type": "http.response.body", "body": bytes(body)})
