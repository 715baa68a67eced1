"""Cuts a connection's bytes into heads and bodies, within limits. Knows no socket, time or answer.

llhttp parses each head, and nothing else: where a head ends and how far a body goes is decided here, so that
every byte is counted before it is kept.
"""

from __future__ import annotations

from typing import Protocol

from server.api.http.chunked import ChunkedBody
from server.api.http.heads import Framing, check_line
from server.api.http.limits import HttpLimits
from server.api.http.refusals import LARGE_HEADERS, LONG_LINE, NOT_HTTP, Refused

_LINE_END = b"\r\n"
_HEAD_END = b"\r\n\r\n"


class _CountedBody:
    """A body of a known length."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.num_bytes = 0
        self.is_complete = length == 0

    def feed(self, data: bytes, at: int) -> tuple[list[bytes], int]:
        part = data[at : at + self._left]
        self._left -= len(part)
        self.num_bytes += len(part)
        self.is_complete = self._left == 0
        return [part], at + len(part)


class Taker(Protocol):
    """Whom requests are handed to."""

    def on_head_bytes(self, data: bytes) -> Framing | None:
        """The next bytes of a head; with its last ones the framing of the body. Raises Refused."""
        ...

    def on_body(self, body: bytes) -> None: ...

    def on_request_end(self) -> None: ...


class RequestReader:
    def __init__(self, taker: Taker, limits: HttpLimits) -> None:
        self._taker = taker
        self._limits = limits
        self._head = bytearray()
        self._body: _CountedBody | ChunkedBody | None = (
            None  # None: still in the head, or between two
        )

    @property
    def is_between(self) -> bool:
        """No request has begun that has not come whole."""
        return self._body is None and not self._head

    @property
    def has_head(self) -> bool:
        """The request that has begun has a whole head."""
        return self._body is not None

    @property
    def num_bytes(self) -> int:
        """Of the request that has not come whole, so far."""
        return len(self._head) + (0 if self._body is None else self._body.num_bytes)

    @property
    def num_head_bytes(self) -> int:
        """Of the head that has just come whole, for its taker: what is read may go on behind it."""
        return self._head.find(_HEAD_END) + len(_HEAD_END)

    def take(self, data: bytes, at: int) -> int:
        """Takes what belongs together, from `at` on. Returns where the rest begins. Raises Refused."""
        return self._take_head(data, at) if self._body is None else self._take_body(data, at)

    def _take_head(self, data: bytes, at: int) -> int:
        head, limits = self._head, self._limits
        num_known = len(head)
        room = limits.max_line_bytes + limits.max_header_bytes + 1 - num_known
        head += data[at : at + room]
        found = head.find(_HEAD_END, max(0, num_known - len(_HEAD_END) + 1))
        end = len(head) if found < 0 else found + len(_HEAD_END)
        framing = self._taker.on_head_bytes(bytes(head[num_known:end]))
        if (framing is None) is not (found < 0):  # llhttp would see another end than we do
            raise Refused(NOT_HTTP)
        if framing is None:
            self._check_size(head, len(head))
        else:
            head.clear()
            self._body = ChunkedBody(limits) if framing.is_chunked else _CountedBody(framing.length)
            self._end_if_complete()
        return at + end - num_known

    def check_head(self) -> bool:
        """To be called by the taker of a head's last bytes, before it looks into it. Returns whether the
        version is 1.1. Raises Refused."""
        head = self._head
        self._check_size(head, head.find(_HEAD_END) + len(_LINE_END))
        return check_line(bytes(head[: head.find(_LINE_END)]))

    def _check_size(self, head: bytearray, num_bytes: int) -> None:
        line = head.find(_LINE_END)
        if (num_bytes if line < 0 else line) > self._limits.max_line_bytes:
            raise Refused(LONG_LINE)
        if line >= 0 and num_bytes - line - len(_LINE_END) > self._limits.max_header_bytes:
            raise Refused(LARGE_HEADERS)

    def _take_body(self, data: bytes, at: int) -> int:
        assert self._body is not None
        parts, at = self._body.feed(data, at)
        for part in parts:
            self._taker.on_body(part)
        self._end_if_complete()
        return at

    def _end_if_complete(self) -> None:
        if self._body is not None and self._body.is_complete:
            self._body = None
            self._taker.on_request_end()
