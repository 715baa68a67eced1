"""One connection that reads a stream which goes on without it: head, pings, and its end. Knows no request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from starlette.types import Receive, Send

from server.api.http.http_protocol import BodyWriter
from server.api.kept.resumable_stream import ResumableStream
from server.api.kept.ring_reader import ReadingEnd, RingReader
from server.api.reply.responses import STREAM_HEADERS
from server.api.reply.sse import PING
from server.errors import EngineGoneError, RequestError

PING_AFTER_S = 15.0  # of silence, where events have no ids


class StreamReading:
    """Whoever reads the stream at that time is cut off. Raises LookupError if event `start` is gone."""

    def __init__(
        self, stream: ResumableStream, body: BodyWriter, start: int, *, has_ids: bool
    ) -> None:
        self._stream = stream
        self._body = body
        self._pings = None if has_ids else _Pings(body)
        self._due = asyncio.Event()  # something to send, or an end
        self._ended = asyncio.Event()
        self._start = start
        self._reader = RingReader(
            stream,
            self._pings or body,
            start,
            self._on_end,
            has_ids=has_ids,
            on_due=self._due.set,
        )
        self.has_begun = False  # the head is sent
        self.end: ReadingEnd | Literal["gone"] | None = None
        stream.attach(self._reader)

    @property
    def num_events(self) -> int:
        """Written to this connection."""
        return self._reader.next - self._start

    async def due(self) -> None:
        """Returns when there is something to send: errors before that have a status."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._due.wait(), None if self._pings is None else PING_AFTER_S)

    async def send(self, send: Send, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Until all is written, the connection is lost, or another one reads."""
        if self.end is None:
            start = {"type": "http.response.start", "status": 200}
            await send({**start, "headers": [*STREAM_HEADERS, *headers]})
            self.has_begun = True
            self._reader.start()
            await self._ended.wait()
        if self.end == "complete":
            await send({"type": "http.response.body", "body": b""})
        elif self.end != "gone" and self.has_begun:
            self._body.cut()
            await self._gone.wait()
        elif self.end == "replaced":
            raise _taken_over()
        elif self.end == "dropped":
            raise EngineGoneError("The stream was dropped.")

    @contextmanager
    def watched(self, receive: Receive) -> Iterator[None]:
        """A client that leaves ends the reading, not the stream."""
        self._gone = asyncio.Event()
        watcher = asyncio.create_task(self._watch(receive))
        try:
            yield
        finally:
            watcher.cancel()
            self._reader.close()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone.set()
        if self.end is None:
            self._reader.close()
            self._on_end("gone")

    def _on_end(self, reason: ReadingEnd | Literal["gone"]) -> None:
        self.end = reason
        self._due.set()
        self._ended.set()


class _Pings:
    """The body of a stream whose silence is filled, as proxies cut connections that are silent."""

    def __init__(self, body: BodyWriter) -> None:
        self._body = body
        self._loop = asyncio.get_running_loop()
        self._written_at = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_paused(self) -> bool:
        return self._body.is_paused

    def write(self, data: bytes) -> None:
        self._written_at = time.monotonic()
        self._body.write(data)

    def start(self, on_writable: Callable[[], None]) -> None:
        self._body.start(on_writable)
        self._on_timer()

    def stop(self) -> None:
        self._body.stop()
        if self._timer is not None:
            self._timer.cancel()

    def _on_timer(self) -> None:
        """One timer, moved only when it is due."""
        wait_s = self._written_at + PING_AFTER_S - time.monotonic()
        if wait_s <= 0:
            wait_s = PING_AFTER_S
            if not self._body.is_paused:
                self.write(PING)
        self._timer = self._loop.call_later(wait_s, self._on_timer)


def _taken_over() -> RequestError:
    return RequestError(
        "A repeat of this request reads its stream now.", code="stream_taken_over", status=409
    )
