"""A server process that streams completions made beforehand, at a pace or flat out.

Run as `python -m benchmarks.serving.event_source LISTENER_FD`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import cast

import uvloop

from benchmarks.serving.api_load import listener_of

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(finish: str | None) -> bytes:
    choice = {"index": 0, "text": " word", "logprobs": None, "finish_reason": finish}
    document = {
        "id": "cmpl-0123456789abcdef0123456789abcdef",
        "object": "text_completion",
        "created": 1790000000,
        "model": "load",
        "choices": [choice],
        "usage": None,
        "system_fingerprint": "fp_load",
    }
    return _chunk(b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n")


_TOKEN, _LAST = _event(None), _event("length")
_END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class _Stream(asyncio.Protocol):
    """A request's body says `max_tokens` and `gap_s`, which is 0 for flat out."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # as uvloop's does not inherit
        self._bytes = b""

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        head, found, body = self._bytes.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if not found or len(body) < length:
            return
        self._bytes = b""
        asked = json.loads(body)
        self._write(_HEAD)
        if asked["gap_s"]:
            self._step(asked["max_tokens"], asked["gap_s"], asyncio.get_running_loop().time())
        else:
            self._write(_TOKEN * (asked["max_tokens"] - 1) + _LAST + _END)

    def _step(self, left: int, gap_s: float, due_s: float) -> None:
        if left == 1:
            self._write(_LAST + _END)
            return
        self._write(_TOKEN)
        due_s += gap_s
        asyncio.get_running_loop().call_at(due_s, self._step, left - 1, gap_s, due_s)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)


async def _serve(listener: socket.socket) -> None:
    server = await asyncio.get_running_loop().create_server(_Stream, sock=listener)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(listener_of(sys.argv[1])))
