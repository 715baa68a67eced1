"""HTTP/1.1 as a client speaks it who may stop, dawdle or hang up at any byte. Knows no server."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

_RESET = struct.pack("ii", 1, 0)  # linger, for no second
_READER_BYTES = 1 << 20
_SMALL_BYTES = 4096  # of a socket's buffer: a reader that stops is soon noticed


class Head(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One TCP connection to `port`. IncompleteReadError: the server has ended it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, *, is_small: bool = False) -> Connection:
        sock = socket.socket()
        try:
            sock.setblocking(False)
            if is_small:  # before it connects: the window is agreed on then
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BYTES)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            limit = _SMALL_BYTES if is_small else _READER_BYTES
            return cls(*await asyncio.open_connection(sock=sock, limit=limit))
        except BaseException:
            sock.close()
            raise

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._writer.transport.abort()

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def read_some(self) -> bytes:
        """b"": the server has ended it."""
        return await self._reader.read(65536)

    async def head(self) -> Head:
        raw = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return Head(int(first.split()[1]), {a.lower(): b.strip() for a, _, b in pairs})

    async def pieces(self, head: Head) -> AsyncIterator[bytes]:
        """The body, as it comes."""
        if head.headers.get("transfer-encoding") != "chunked":
            yield await self._reader.readexactly(int(head.headers.get("content-length", 0)))
            return
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)

    async def reply(self) -> Reply:
        head = await self.head()
        body = b"".join([piece async for piece in self.pieces(head)])
        return Reply(head.status, head.headers, body)


async def ask(port: int, request: bytes) -> Reply:
    """On a connection of its own."""
    async with await Connection.open(port) as connection:
        await connection.send(request)
        return await connection.reply()


def request(
    key: str | None,
    target: str = "/v1/completions",
    body: Mapping[str, Any] | bytes | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    closes: bool = True,
) -> bytes:
    """A POST where there is a body, else a GET."""
    lines = [f"{'GET' if body is None else 'POST'} {target} HTTP/1.1", "Host: localhost"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if closes:
        lines.append("Connection: close")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    data = b""
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*lines, "", ""]).encode() + data
