"""One HTTP exchange with another api process, over its Unix socket: a whole request, and the response as it
comes. What is not taken of it stays where it is.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, cast

import httptools

Headers = Sequence[tuple[bytes, bytes]]

_FULL_BYTES = 1 << 14  # of a response, not taken: then nothing more is read
SENT_BYTES = 1 << 14  # the other worker's socket buffer, of which the kernel makes twice as much
MAX_UNREAD_BYTES = _FULL_BYTES + 2 * SENT_BYTES
_RETRY_S = 0.1  # a thousand requests that wait take a third of a core


class Unread:
    """Bytes that were read from other workers, and wait for clients here."""

    def __init__(self) -> None:
        self.num_bytes = 0


unread = Unread()  # of this process


class UpstreamLost(Exception):
    """There is no such process now, or it has ended before its response."""


class Head(NamedTuple):
    """Of a response."""

    status: int
    headers: list[tuple[bytes, bytes]]  # names in lower case


class _Exchange(asyncio.Protocol):
    """Parses one response, and lets its reader wait for what comes next."""

    def __init__(self, *, is_head: bool) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._is_head = is_head  # such a response has no body, whatever its headers say
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: deque[bytes] = deque()
        self._num_unread_bytes = 0
        self._changed = asyncio.Event()
        self._is_lost = False
        self.transport: asyncio.Transport | None = None
        self.head: Head | None = None
        self.is_complete = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()
        if self._num_unread_bytes > _FULL_BYTES and not self.transport.is_closing():
            self.transport.pause_reading()
        self._changed.set()

    # what httptools calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # else an interim one: the response is still to come
            self.head = Head(status, self._headers)
            self.is_complete = self._is_head or status == 204
        self._headers = []

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._count(len(body))

    def on_message_complete(self) -> None:
        self.is_complete = self.head is not None

    # what its reader calls

    async def changed(self) -> None:
        """Until more has come. Raises UpstreamLost."""
        if self._is_lost:
            raise UpstreamLost
        self._changed.clear()
        await self._changed.wait()

    def take(self) -> bytes:
        """All of the body that has come."""
        assert self.transport is not None
        body = b"".join(self._parts)
        self._parts.clear()
        is_open = not (self._is_lost or self.transport.is_closing())
        if self._num_unread_bytes > _FULL_BYTES and is_open:
            self.transport.resume_reading()
        self._count(-self._num_unread_bytes)
        return body

    def _count(self, num_bytes: int) -> None:
        self._num_unread_bytes += num_bytes
        unread.num_bytes += num_bytes


class Upstream:
    """A connection for one request; closed by whoever has opened it."""

    def __init__(self, exchange: _Exchange, transport: asyncio.Transport) -> None:
        self._exchange = exchange
        self._transport = transport

    @classmethod
    async def connect(cls, path: str, wait_s: float, *, is_head: bool = False) -> Upstream:
        """`wait_s`: for a process that starts again. Raises UpstreamLost."""
        loop, until = asyncio.get_running_loop(), time.monotonic() + wait_s
        while True:
            try:
                transport, exchange = await loop.create_unix_connection(
                    lambda: _Exchange(is_head=is_head), path
                )
                return cls(exchange, transport)
            except OSError:
                if time.monotonic() >= until:
                    raise UpstreamLost from None
            await asyncio.sleep(_RETRY_S)

    def send(self, request_line: bytes, headers: Headers, body: bytes = b"") -> None:
        """The whole request; `headers` frame `body`."""
        lines = [request_line, *[b"%b:%b" % header for header in headers]]
        self._transport.write(b"\r\n".join([*lines, b"", b""]))
        self._transport.write(body)  # not copied

    async def head(self) -> Head:
        """Raises UpstreamLost."""
        while self._exchange.head is None:
            await self._exchange.changed()
        return self._exchange.head

    async def part(self) -> bytes:
        """What has come of the body since; empty at its end. Raises UpstreamLost where it ends too early."""
        while not (part := self._exchange.take()) and not self._exchange.is_complete:
            await self._exchange.changed()
        return part

    def close(self) -> None:
        self._transport.abort()
        self._exchange.take()
