"""uvicorn's HTTP protocol, with a way past ASGI for the body of a stream.

A stream's task would be woken for every token, and `send` awaited through every middleware: that costs
more than the token itself. Head and end of a response still go through `send`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.api.http.slow_readers import STATE, Connection, SlowReaders

_EXTENSION = "continuo.body_writer"
# Of what a connection's socket has not taken; then its writer is told to wait. uvloop adds about 1 KB to
# each small write, so a stream's 16 KiB are 70 KB of memory. What the kernel holds is not counted.
_HIGH_WATER_BYTES = 1 << 14


class _Flow(FlowControl):
    """uvicorn's flow control, which also tells who writes past it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        self.connection = Connection(transport)
        self.on_writable: Callable[[], None] | None = None
        self.on_paused: Callable[[], None] | None = None

    @property
    def num_unsent_bytes(self) -> int:
        """What the socket has not taken yet."""
        return self._transport.get_write_buffer_size()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.on_paused is not None:
            self.on_paused()

    def resume_writing(self) -> None:
        """uvicorn also calls it for a connection that is lost: then nothing more can be written."""
        super().resume_writing()
        if self.on_writable is not None and not self._transport.is_closing():
            self.on_writable()


class BodyWriter:
    """Writes parts of one response's body, at once, from any callback of the loop.

    Only between `send` of the response's start and of its last body message.
    """

    def __init__(self, cycle: RequestResponseCycle, flow: _Flow) -> None:
        self._cycle = cycle
        self._flow = flow

    @property
    def is_paused(self) -> bool:
        """The client reads slower than it is written to: whoever writes on fills memory."""
        return self._flow.write_paused

    @property
    def is_too_slow(self) -> bool:
        """It was cut: its client took nothing for too long."""
        return self._flow.connection.is_too_slow

    @property
    def num_unsent_bytes(self) -> int:
        """Written, and not taken by the socket."""
        return 0 if self._cycle.transport.is_closing() else self._flow.num_unsent_bytes

    def write(self, data: bytes) -> None:
        """A no-op once the client is gone. uvloop collects the writes of one turn by itself."""
        cycle = self._cycle
        # Between the loss of a connection and `disconnected` uvloop's transport raises:
        if not cycle.disconnected and not cycle.transport.is_closing():
            # Chunked, as uvicorn frames every body without a length:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def cut(self) -> None:
        """Ends the connection at once, in the midst of the body: nobody can take it for the whole."""
        if not self._cycle.transport.is_closing():
            self._cycle.transport.abort()

    def start(
        self, on_writable: Callable[[], None], on_paused: Callable[[], None] | None = None
    ) -> None:
        """`on_paused` is called whenever a pause begins, also within `write`, and `on_writable` whenever one
        is over, until `stop`."""
        self._flow.on_writable, self._flow.on_paused = on_writable, on_paused

    def stop(self) -> None:
        self._flow.on_writable = self._flow.on_paused = None


class StreamingHttpProtocol(HttpToolsProtocol):
    """Every request's scope has a BodyWriter among its extensions."""

    flow: _Flow

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._cycles: deque[RequestResponseCycle] = deque()  # the oldest first
        self._slow_readers: SlowReaders | None = self.app_state.get(STATE)
        if self._slow_readers is not None:
            self._slow_readers.add(self.flow.connection)

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn tells only the latest request of it; behind pipelined ones the running one would run on."""
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        if self._slow_readers is not None:
            self._slow_readers.discard(self.flow.connection)
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()  # starts a task, which runs later
        if self.cycle is not None and self.cycle.scope is self.scope:
            while self._cycles and self._cycles[0].response_complete:
                self._cycles.popleft()
            self._cycles.append(self.cycle)
            self.scope["extensions"] = {_EXTENSION: BodyWriter(self.cycle, self.flow)}  # type: ignore[dict-item]


def body_writer(scope: Mapping[str, Any]) -> BodyWriter:
    """That of a request; it must have come through StreamingHttpProtocol."""
    writer = scope["extensions"][_EXTENSION]
    assert isinstance(writer, BodyWriter)
    return writer


def is_too_slow(scope: Mapping[str, Any]) -> bool:
    """Its connection was cut because its client took nothing for too long."""
    writer = scope.get("extensions", {}).get(_EXTENSION)
    return isinstance(writer, BodyWriter) and writer.is_too_slow
