"""What the streams of one engine step write, sent together once all of them have been served.

An engine's frame wakes every stream's task in one turn of the loop. Written one by one, each piece would
wake its reader before the next is made: on few cores that costs more than the piece itself.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class WriteBatch:
    """The transports of one event loop that have something to send before its next turn."""

    def __init__(self) -> None:
        self._transports: list[BatchedTransport] = []

    def add(self, transport: BatchedTransport) -> None:
        if not self._transports:
            # Behind the tasks that are ready by now:
            asyncio.get_running_loop().call_soon(self._flush)
        self._transports.append(transport)

    def _flush(self) -> None:
        transports, self._transports = self._transports, []
        for transport in transports:
            transport.flush()


class BatchedTransport:
    """A transport whose writes wait for their batch. All else is the inner transport's own."""

    def __init__(self, inner: asyncio.Transport, batch: WriteBatch) -> None:
        self._inner = inner
        self._batch = batch
        self._unsent: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, data: bytes) -> None:
        if not self._unsent:
            self._batch.add(self)
        self._unsent.append(data)

    def flush(self) -> None:
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            self._inner.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    def close(self) -> None:
        self.flush()
        self._inner.close()


def batched_http_protocol() -> type[HttpToolsProtocol]:
    """uvicorn's own protocol over batched transports, for one server."""
    batch = WriteBatch()

    class BatchedHttpProtocol(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(cast(asyncio.Transport, BatchedTransport(transport, batch)))

    return BatchedHttpProtocol
