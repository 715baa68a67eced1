"""From a stream's ring to one connection: a place in the ring, and the framing. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from server.api.kept.ring import Ring

ReadingEnd = Literal["complete", "replaced", "dropped"]

_MAX_EVENTS = 256  # of one write: a ring may hold megabytes, which then would wait twice


class Body(Protocol):
    """What takes the bytes of one response."""

    @property
    def is_paused(self) -> bool: ...

    def write(self, data: bytes) -> None: ...

    def start(self, on_writable: Callable[[], None]) -> None: ...

    def stop(self) -> None: ...


class Source(Protocol):
    """The stream that is read."""

    id: str
    ring: Ring
    is_complete: bool

    def on_read(self) -> None: ...

    def detach(self, reader: RingReader) -> None: ...


class RingReader:
    """Attached to its stream it counts as its reader; what it writes begins with `start`."""

    def __init__(
        self,
        stream: Source,
        body: Body,
        start: int,
        on_end: Callable[[ReadingEnd], None],
        *,
        has_ids: bool = True,
        on_due: Callable[[], None] = lambda: None,
    ) -> None:
        """`start`: number of the first event to write. `on_end` is called at most once, and not after
        `close`; `on_due` while events wait for `start`."""
        self._stream = stream
        self._body = body
        self._on_end = on_end
        self._on_due = on_due
        self._id_line = b"id: %s:" % stream.id.encode() if has_ids else b""
        self._is_started = False
        self._is_over = False
        self.next = start  # all events before it are written

    def start(self) -> None:
        """The response's head is sent."""
        if not self._is_over:
            self._is_started = True
            self._body.start(self._on_writable)
            self._on_writable()

    def pump(self) -> None:
        """Writes what is due, in one write where it is not much."""
        ring = self._stream.ring
        if not self._is_started:
            if self.next < ring.next:
                self._on_due()
            return
        while self.next < ring.next and not self._body.is_paused and not self._is_over:
            first, events = self.next, ring.since(self.next, _MAX_EVENTS)
            self.next += len(events)
            self._body.write(self._framed(first, events))
        if self._stream.is_complete and self.next == ring.next:
            self.end("complete")

    def end(self, reason: ReadingEnd) -> None:
        if not self._is_over:
            self.close()
            self._on_end(reason)

    def close(self) -> None:
        """Nobody reads any more: the stream goes on without."""
        if not self._is_over:
            self._is_over = True
            if self._is_started:
                self._body.stop()
            self._stream.detach(self)

    def _on_writable(self) -> None:
        self.pump()
        self._stream.on_read()

    def _framed(self, first: int, events: list[bytes]) -> bytes:
        line = self._id_line
        if not line:
            return b"".join(events)
        if len(events) == 1:
            return b"%s%d\n%s" % (line, first, events[0])
        return b"".join([b"%s%d\n%s" % (line, n, event) for n, event in enumerate(events, first)])
