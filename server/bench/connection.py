"""HTTP/1.1 from the client's side on asyncio and httptools: kept-alive connections, bodies as they arrive.

Bodies go to a reader the moment they are read from the socket, with the time of that moment: no task
switch and no queue lies between. Knows nothing of completions.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Protocol, cast

import httptools

from server.bench.target import Target


class TransferError(Exception):
    """No complete response came; `str()` is a short name for it that groups failures."""


class BodyReader:
    """Keeps the body: for short answers."""

    def __init__(self, max_bytes: int) -> None:
        self.status = 0
        self.body = b""
        self._max_bytes = max_bytes

    def begin(self, status: int) -> None:
        self.status = status

    def receive(self, body: bytes, at_s: float) -> None:
        if len(self.body) + len(body) > self._max_bytes:
            raise TransferError("response too long")
        self.body += body


class StaleConnectionError(TransferError):
    """A kept-alive connection was closed before any byte of the response: worth another connection."""


class ResponseReader(Protocol):
    def begin(self, status: int) -> None: ...

    def receive(self, body: bytes, at_s: float) -> None:
        """`at_s`: time.perf_counter() when these bytes were read. May raise TransferError."""


class Connection(asyncio.Protocol):
    """One exchange at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reader: ResponseReader | None = None
        self._done: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._at_s = 0.0
        self._has_begun = False
        self._has_headers = False
        self._ends_at_close = True
        self._is_reused = False
        self.is_reusable = True

    async def exchange(self, request: bytes, reader: ResponseReader) -> None:
        """Returns when the response is complete; cancelled or failed, it closes the connection."""
        assert self._transport is not None and self._done is None
        self._reader = reader
        self._done = asyncio.get_running_loop().create_future()
        self._has_begun = False
        try:
            self._transport.write(request)
            await self._done
        except BaseException:
            self.close()
            raise
        finally:
            self._reader = self._done = None
            self._is_reused = True

    def close(self) -> None:
        self.is_reusable = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._at_s = time.perf_counter()
        if self._reader is None:
            self.close()  # bytes that nobody asked for
            return
        self._has_begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            # what a callback of ours raised is its cause
            own = error.__context__
            self._fail(own if isinstance(own, TransferError) else TransferError("malformed HTTP"))
        except TransferError as error:
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_reusable = False
        if self._is_reused and not self._has_begun:
            self._fail(StaleConnectionError("connection closed"))
        elif self._has_headers and self._ends_at_close and exc is None:
            self.on_message_complete()
        else:
            self._fail(TransferError("connection closed"))

    # httptools

    def on_message_begin(self) -> None:
        self._ends_at_close = True
        self._has_headers = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._ends_at_close = False

    def on_headers_complete(self) -> None:
        self._has_headers = True
        if self._reader is not None:
            self._reader.begin(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        if self._reader is not None:
            self._reader.receive(body, self._at_s)

    def on_message_complete(self) -> None:
        self.is_reusable = self.is_reusable and self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: TransferError) -> None:
        self.close()
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


class HttpClient:
    """Any number of connections to one server; idle ones are taken again, the latest first."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._idle: list[Connection] = []

    async def send(self, request: bytes, reader: ResponseReader, timeout_s: float) -> None:
        """Raises TransferError when no complete response came in time."""
        try:
            await asyncio.wait_for(self._send(request, reader), timeout_s)
        except (asyncio.TimeoutError, TimeoutError) as error:  # two classes before Python 3.11
            raise TransferError("timeout") from error

    async def _send(self, request: bytes, reader: ResponseReader) -> None:
        while True:
            connection = self._take_idle() or await self._connect()
            try:
                await connection.exchange(request, reader)
            except StaleConnectionError:
                continue  # its server closed it while it was idle; ends with a new one at the latest
            if connection.is_reusable:
                self._idle.append(connection)
            else:
                connection.close()
            return

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
        return None

    async def _connect(self) -> Connection:
        target = self._target
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                Connection, target.host, target.port, ssl=target.tls
            )
        except ConnectionRefusedError as error:
            raise TransferError("connection refused") from error
        except OSError as error:
            raise TransferError(f"cannot connect ({_reason(error)})") from error
        return connection

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {error.verify_message}"
    return (error.strerror or type(error).__name__).lower()
