"""Server-sent events out of bytes that may be cut anywhere, by the WHATWG HTML standard, section 9.2.6.

Knows nothing of what the data of an event means.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 16 << 20


class EventTooLongError(Exception):
    """A line or an event beyond MAX_EVENT_BYTES."""


class EventParser:
    """`feed` returns the data of the events that its bytes complete: lines joined by a newline."""

    def __init__(self) -> None:
        self._rest = b""  # of a line that is not over
        self._data: list[bytes] = []
        self._num_data_bytes = 0
        self._is_after_cr = False
        self._is_at_start = True

    @property
    def is_inside_event(self) -> bool:
        """What is left at the end of a stream is part of an event, so the stream was cut."""
        return bool(self._rest.strip(b"\r\n") or self._data)

    def feed(self, chunk: bytes) -> list[bytes]:
        if b"\r" in chunk or self._is_after_cr:
            chunk = self._unify_line_ends(chunk)
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLongError
        if self._is_at_start and lines:
            self._is_at_start = False
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        events: list[bytes] = []
        for line in lines:
            if line:
                self._take_field(line)
            elif self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data = []
                self._num_data_bytes = 0
        return events

    def _unify_line_ends(self, chunk: bytes) -> bytes:
        if not chunk:
            return chunk
        if self._is_after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the second half of a line end that is already counted
        self._is_after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name != b"data":
            return  # a comment, or a field that no server of this kind needs
        self._data.append(value[1:] if value.startswith(b" ") else value)
        self._num_data_bytes += len(value)
        if self._num_data_bytes > MAX_EVENT_BYTES:
            raise EventTooLongError
