"""A client whose connections are cut at any byte, and who must not lose one: raw sockets, its own reading of
chunks and events.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_ID = re.compile(rb"id: ([0-9a-f]{32}):(\d+)\ndata: ([^\n]*)\n\n")
_RESET = struct.pack("ii", 1, 0)
_UNCUT = 1 << 40


class Reply:
    """What came of one response so far: its status, and the events that came whole."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.is_whole = False
        self._raw = bytearray()  # of the wire, not yet understood
        self._text = bytearray()  # of the body, behind the last whole event
        self._left = 0  # bytes of the present chunk, with its line break, that have not come
        self._is_last = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._raw += data
        if self.status is None:
            head, found, rest = self._raw.partition(b"\r\n\r\n")
            if not found:
                return
            self.status, self.head = int(head[9:12]), bytes(head)
            self._raw = rest
        self._read_chunks()
        while (end := self._text.find(b"\n\n")) >= 0:
            yield bytes(self._text[: end + 2])
            del self._text[: end + 2]

    def _read_chunks(self) -> None:
        """Also of one that has not come whole: it may be longer than any connection lasts."""
        while self._raw and not self.is_whole:
            if self._left == 0:
                size, found, rest = self._raw.partition(b"\r\n")
                if not found:
                    return
                self._left, self._raw = int(size, 16) + 2, rest  # and its line break
                self._is_last = size == b"0"
            data = self._raw[: self._left]
            del self._raw[: self._left]
            self._left -= len(data)
            self._text += data[: max(0, len(data) + self._left - 2)]
            self.is_whole = self._is_last and self._left == 0


@dataclass
class Reader:
    """Reads one stream to its end, whatever becomes of its connections."""

    address: tuple[str, int]
    body: dict[str, Any]
    name: str  # its Idempotency-Key: how a stream is found whose first id never came
    rng: random.Random
    events: list[bytes] = field(default_factory=list)  # as they came, with their ids
    num_cuts: int = 0
    num_takeovers: int = 0
    num_posts: int = 0  # until it had its first id
    _last_id: str = ""
    _is_done: bool = False
    _sockets: list[socket.socket] = field(default_factory=list)

    async def read(self) -> None:
        try:
            while not self._is_done:
                await asyncio.wait_for(self._connect(self._budget()), 60)
                if self.rng.random() < 0.1:
                    await asyncio.sleep(self.rng.random() / 2)
        finally:
            self._close()

    async def read_again(self) -> bytes:
        """The whole stream in one piece, with a connection that nobody cuts."""
        again = Reader(self.address, self.body, self.name, self.rng)
        again._last_id = self._last_id.partition(":")[0] + ":"
        try:
            await asyncio.wait_for(again._connect(_UNCUT), 60)
        finally:
            again._close()
        return b"".join(again.events)

    def _close(self) -> None:
        for sock in self._sockets:
            sock.close()

    def _budget(self) -> int:
        """How many bytes of the reply are read: before and in the head, within the first event, far on."""
        return self.rng.randrange(self.rng.choice([1, 300, 1000, 8000, 32000]))

    def _request(self) -> bytes:
        stream, _, number = self._last_id.partition(":")
        if not stream:
            data = json.dumps(self.body).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            head += f"Content-Type: application/json\r\nIdempotency-Key: {self.name}\r\n"
            return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
        last = f"Last-Event-ID: {self._last_id}\r\n" if number else ""
        return f"GET /v1/completions/{stream}/stream HTTP/1.1\r\nHost: localhost\r\n{last}\r\n".encode()

    async def _connect(self, budget: int) -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        self._sockets.append(sock)
        sock.setblocking(False)
        await loop.sock_connect(sock, self.address)
        request = self._request()
        self.num_posts += request.startswith(b"POST")
        if budget == 0:  # also before all of it is sent
            request = request[: self.rng.randrange(2 * len(request))]
        await loop.sock_sendall(sock, request)
        reply = Reply()
        while budget > 0 and not reply.is_whole:
            data = await loop.sock_recv(sock, min(budget, 1 << 16))
            budget -= len(data)
            assert data, f"cut by the server: {self.name}, behind {self._last_id}"
            for event in reply.feed(data):
                self._take(event)
            assert reply.status in (None, 200), (reply.head, data)
        if reply.is_whole:
            assert self._is_done, self.events[-1:]
            sock.close()
        else:
            self._cut(sock)

    def _take(self, event: bytes) -> None:
        """Ids must go on without a gap or a repeat."""
        found = _ID.fullmatch(event)
        assert found, event
        stream, number = found[1].decode(), int(found[2])
        assert number == len(self.events), (number, len(self.events), event)
        assert self._last_id[:32] in ("", stream)
        self._last_id = f"{stream}:{number}"
        self._is_done = found[3] == b"[DONE]"
        self.events.append(event)

    def _cut(self, sock: socket.socket) -> None:
        self.num_cuts += 1
        how = self.rng.choice(["end", "reset", "silence"])
        if how == "silence":  # the next connection takes over while this one is open
            self.num_takeovers += 1
            return
        if how == "end":
            with suppress(OSError):  # the server may have closed it
                sock.shutdown(socket.SHUT_WR)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.close()
