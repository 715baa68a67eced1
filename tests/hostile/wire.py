"""HTTP as bytes: sends whatever it is given, in any pieces, and reads the answers by rules of its own.

Knows nothing of the server. What is not HTTP/1.1 to the letter raises Malformed.
"""

from __future__ import annotations

import re
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

Address = tuple[str, int]
Piece = bytes | float  # bytes are sent, a number is a pause in seconds

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d) [\x20-\x7e]*")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\x20-\x7e]*)")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")
_RESET = struct.pack("ii", 1, 0)
_MAX_DURATION_S = 30.0  # of sending what has no end


class Malformed(AssertionError):
    """The server sent what is no HTTP."""


@dataclass
class Response:
    status: int
    headers: list[tuple[str, str]]  # names in lower case
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """None: there is none. It must not be there twice."""
        values = [value for each, value in self.headers if each == name]
        if len(values) > 1:
            raise Malformed(f"{name} is there {len(values)} times")
        return values[0] if values else None

    @property
    def closes(self) -> bool:
        return (self.header("connection") or "").lower() == "close"


class Responses:
    """What has been understood of one connection's bytes. Interim answers (1xx) are passed over."""

    def __init__(self, is_head: bool = False) -> None:
        self.found: list[Response] = []
        self.num_interim = 0
        self._is_head = is_head  # the requests were HEAD: no answer has a body
        self._rest = bytearray()

    def feed(self, data: bytes) -> None:
        self._rest += data
        while self._rest and self._take():
            pass

    @property
    def is_between(self) -> bool:
        """No answer has begun that is not whole."""
        return not self._rest

    def _take(self) -> bool:
        head, found, _ = self._rest.partition(b"\r\n\r\n")
        if not found:
            if len(head) > 65536:
                raise Malformed("a head without end")
            return False
        response = _read_head(bytes(head))
        end = self._read_body(response, len(head) + 4)
        if end is None:
            return False
        del self._rest[:end]
        if response.status < 200:
            self.num_interim += 1
        else:
            self.found.append(response)
        return True

    def _read_body(self, response: Response, start: int) -> int | None:
        """Where it ends; None while it has not come whole."""
        length, coding = response.header("content-length"), response.header("transfer-encoding")
        if length is not None and coding is not None:
            raise Malformed("a length and a transfer coding")
        if self._is_head or response.status < 200 or response.status in (204, 304):
            return start
        if coding is not None:
            return self._read_chunks(response, start)
        if length is None or not length.isdecimal():
            raise Malformed(f"a body of the length {length}")
        end = start + int(length)
        response.body = bytes(self._rest[start:end])
        return end if len(self._rest) >= end else None

    def _read_chunks(self, response: Response, at: int) -> int | None:
        parts = []
        while size := _CHUNK.match(self._rest, at):
            end = size.end() + int(size[1], 16)
            if len(self._rest) < end + 2:
                return None
            if self._rest[end : end + 2] != b"\r\n":
                raise Malformed("a chunk without its end")
            if end == size.end():
                response.body = b"".join(parts)
                return end + 2
            parts.append(bytes(self._rest[size.end() : end]))
            at = end + 2
        if len(self._rest) - at > 10:
            raise Malformed("a chunk without its size")
        return None


def _read_head(head: bytes) -> Response:
    first, *lines = head.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise Malformed(f"a status line {first[:80]!r}")
    headers = []
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise Malformed(f"a header {line[:80]!r}")
        headers.append((header[1].decode().lower(), header[2].decode()))
    return Response(int(status[1]), headers)


@dataclass
class Exchange:
    """What became of one connection."""

    responses: list[Response] = field(default_factory=list)
    num_interim: int = 0
    is_closed: bool = False  # by the server
    is_cut: bool = False  # within an answer
    num_sent: int = 0
    duration_s: float = 0.0  # from the last byte sent to the last answer; 0 if that was before


class _Sender:
    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces: Iterator[Piece] = iter(pieces)
        self._left = memoryview(b"")
        self._not_before = 0.0
        self.is_done = False
        self.num_sent = 0
        self.last_at = time.monotonic()
        self._next()

    def _next(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            self.is_done = True
        elif isinstance(piece, bytes):
            self._left = memoryview(piece)
        else:
            self._not_before = time.monotonic() + piece
            self._next()

    def wait_s(self) -> float:
        return max(0.0, self._not_before - time.monotonic())

    def send(self, sock: socket.socket) -> None:
        with suppress(BlockingIOError):
            num = sock.send(self._left)
            self.num_sent += num
            self._left = self._left[num:]
            self.last_at = time.monotonic()
            if not self._left:
                self._next()


def exchange(
    address: Address,
    pieces: Iterable[Piece],
    *,
    num_responses: int = 1,
    until_closed: bool = False,
    is_head: bool = False,
    timeout_s: float = 5.0,
) -> Exchange:
    """Ends with the last of the wanted answers, if it does not close; at the server's end; or after
    `timeout_s` behind the last byte sent."""
    result, responses = Exchange(), Responses(is_head)
    result.responses = responses.found
    with socket.create_connection(address) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sender = _Sender(pieces)
        give_up_at = time.monotonic() + max(_MAX_DURATION_S, 2 * timeout_s)
        while time.monotonic() < min(give_up_at, sender.last_at + sender.wait_s() + timeout_s):
            data = _turn(sock, sender)
            if data:
                num_known = len(responses.found)
                responses.feed(data)
                if len(responses.found) > num_known:
                    result.duration_s = time.monotonic() - sender.last_at if sender.is_done else 0.0
            elif data is not None:
                result.is_closed = True
                break
            has_all = len(responses.found) >= num_responses and not until_closed
            if has_all and not responses.found[-1].closes:
                break
        result.num_interim, result.num_sent = responses.num_interim, sender.num_sent
        result.is_cut = result.is_closed and not responses.is_between
    return result


def _turn(sock: socket.socket, sender: _Sender) -> bytes | None:
    """Sends and receives what is possible. b"": the server has closed; None: nothing came."""
    can_send = not sender.is_done and sender.wait_s() == 0
    poll = select.poll()
    poll.register(sock, select.POLLIN | (select.POLLOUT if can_send else 0))
    wait_s = 0.05 if sender.is_done or can_send else min(0.05, sender.wait_s())
    events = poll.poll(1 + 1000 * wait_s)
    try:
        if events and events[0][1] & ~select.POLLOUT:
            return sock.recv(1 << 18)
        if events:
            sender.send(sock)
    except BlockingIOError:
        return None
    except (
        OSError
    ):  # a reset, or a send into a connection that is closed: what was answered comes first
        with suppress(OSError):
            return sock.recv(1 << 18)
        return b""
    return None


def reset(sock: socket.socket) -> None:
    """Closes with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
