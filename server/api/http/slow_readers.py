"""Connections that are cut because their clients take nothing of what waits for them, whatever that is: a
stream, a reply, what is left of one that is closed. Knows no request.

The connections come through uvicorn's lifespan state, which it hands to each protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

CUT_AFTER_S = 60.0
MAX_BYTES = 256 << 20  # that wait for all of them; 8,192 paused streams have half of it
STATE = "continuo.slow_readers"  # in the lifespan's state

_RESET = struct.pack("ii", 1, 0)  # linger, for no second
_INFO_BYTES = 136  # of Linux' struct tcp_info, to the end of
_ACKED_AT = 120  # tcpi_bytes_acked, 64 bits


class Connection:
    """What waits for one client, and since when it has taken nothing of it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._socket = transport.get_extra_info("socket")
        family = getattr(self._socket, "family", None)
        self._is_peers = family == socket.AF_UNIX  # who has the client sees what he takes, and cuts
        self._num_waiting = 0
        self._num_acked = -1
        self._since_s: float | None = None  # None: nothing waits
        self.is_too_slow = False

    def look(self, now_s: float) -> bool:
        """Whether it takes something, or there is nothing to take."""
        num_waiting = self.num_unsent_bytes
        if num_waiting == 0 or self._is_peers:
            self._since_s = None
            return True
        num_acked = _num_acked(self._socket)
        has_taken = num_acked != self._num_acked or num_waiting < self._num_waiting
        self._num_waiting, self._num_acked = num_waiting, num_acked
        if has_taken or self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s < CUT_AFTER_S

    @property
    def num_unsent_bytes(self) -> int:
        try:
            return self._transport.get_write_buffer_size()
        except RuntimeError:
            # uvloop's, between the loss of a connection and the call that tells of it
            return 0

    def cut(self) -> None:
        """With a reset: what the kernel holds for it goes, too."""
        self.is_too_slow = True
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()


class SlowReaders:
    """All connections."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        """`max_bytes`: what may wait for all of them, from one sweep to the next."""
        self.max_bytes = max_bytes
        self._connections: set[Connection] = set()
        self.num_closed = 0

    @property
    def num_bytes(self) -> int:
        """That wait for all of them at the moment."""
        return sum([connection.num_unsent_bytes for connection in self._connections])

    def add(self, connection: Connection) -> None:
        self._connections.add(connection)

    def discard(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def sweep(self, now_s: float) -> None:
        """To be called about once a second."""
        for connection in [each for each in self._connections if not each.look(now_s)]:
            self._cut(connection)
        self._cut_to_size()

    def _cut_to_size(self) -> None:
        """Where more waits for all of them than there is room for, who has most of it goes."""
        num_bytes = self.num_bytes
        if num_bytes <= self.max_bytes:
            return
        for connection in sorted(self._connections, key=lambda each: -each.num_unsent_bytes):
            if num_bytes <= self.max_bytes:
                break
            num_bytes -= connection.num_unsent_bytes
            self._cut(connection)

    def _cut(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.num_closed += 1
        connection.cut()


def _num_acked(sock: socket.socket | None) -> int:
    """Bytes that the client's machine has taken: what is in our kernel's buffer moves in large pieces only,
    so a reader of 10 KB/s would seem to stand still for minutes. 0 where the kernel does not say."""
    try:
        assert sock is not None
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        return int(struct.unpack_from("=Q", info, _ACKED_AT)[0])
    except (AssertionError, OSError, struct.error, AttributeError):
        return 0
