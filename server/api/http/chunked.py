"""Chunked bodies (RFC 9112, section 7.1), to the letter and within limits. Knows no socket.

llhttp would decode them too, but tells neither a chunk's size before its bytes nor what extensions cost.
"""

from __future__ import annotations

import re

from server.api.http.limits import HttpLimits
from server.api.http.refusals import BAD_CHUNKS, TOO_LARGE, TOO_MANY_CHUNKS, Refused

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_MAX_LINE_BYTES = 4096


class ChunkedBody:
    """Fed in any pieces. Trailers are passed over: nothing may reach a request behind its headers."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._line = bytearray()  # a size line or trailer whose end has not come
        self._left = 0  # of the chunk's data; its CRLF counts
        self._num_chunks = 0
        self._num_extra_bytes = 0
        self._is_in_trailers = False
        self.num_bytes = 0
        self.is_complete = False

    def feed(self, data: bytes, at: int) -> tuple[list[bytes], int]:
        """The parts of the body in `data` from `at` on, and where what is no longer of it begins.
        Raises Refused."""
        parts: list[bytes] = []
        while at < len(data) and not self.is_complete:
            at = self._take_data(data, at, parts) if self._left else self._take_line(data, at)
        return parts, at

    def _take_data(self, data: bytes, at: int, parts: list[bytes]) -> int:
        if self._left > 2:
            part = data[at : at + self._left - 2]
            parts.append(part)
            self.num_bytes += len(part)
            self._left -= len(part)
            at += len(part)
        if self._left <= 2:
            end = data[at : at + self._left]
            if end != b"\r\n"[2 - self._left :][: len(end)]:
                raise Refused(BAD_CHUNKS)
            self._left -= len(end)
            at += len(end)
        return at

    def _take_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at, at + _MAX_LINE_BYTES)
        if end < 0:
            self._line += data[at : at + _MAX_LINE_BYTES]
            if len(self._line) >= _MAX_LINE_BYTES:
                raise Refused(TOO_MANY_CHUNKS)
            return len(data)
        line = bytes(self._line) + data[at:end]
        self._line.clear()
        if not line.endswith(b"\r"):
            raise Refused(BAD_CHUNKS)
        self._on_line(line[:-1])
        return end + 1

    def _on_line(self, line: bytes) -> None:
        if self._is_in_trailers:
            if line and not _TRAILER.fullmatch(line):
                raise Refused(BAD_CHUNKS)
            self._count_extra(len(line))
            self.is_complete = not line
            return
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise Refused(BAD_CHUNKS)
        size = int(match[1], 16)
        self._count_extra(len(line) - len(b"%x" % size))
        if size == 0:
            self._is_in_trailers = True
            return
        limits = self._limits
        self._num_chunks += 1
        if self._num_chunks > limits.max_tiny_chunks + self.num_bytes // limits.min_chunk_bytes:
            raise Refused(TOO_MANY_CHUNKS)
        if self.num_bytes + size > limits.max_body_bytes:
            raise Refused(TOO_LARGE)
        self._left = size + 2

    def _count_extra(self, num_bytes: int) -> None:
        self._num_extra_bytes += num_bytes
        if self._num_extra_bytes > self._limits.max_chunk_extra_bytes:
            raise Refused(TOO_MANY_CHUNKS)
