"""The end of a connection whose client may still be sending.

A close with bytes unread resets the connection, and many systems then drop the answer that was not read yet.
"""

from __future__ import annotations

import asyncio

from server.api.http.limits import HttpLimits


class GentleTransport:
    """What a response needs of a transport. Its `close` ends our side; the other side is read, and passed
    over, for a moment."""

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, limits: HttpLimits
    ) -> None:
        self.write = transport.write
        self.abort = transport.abort
        self._transport = transport
        self._loop = loop
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._num_passed_over = 0
        self.has_ended = False

    def is_closing(self) -> bool:
        return self.has_ended or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        self.has_ended = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._linger()
        else:  # TLS has its own last words
            self._transport.close()

    def _linger(self) -> None:
        self._timer = self._loop.call_later(self._limits.linger_s, self._end)

    def _end(self) -> None:
        """Unless it is still being sent: who takes none of that is cut by others, as a slow reader."""
        if not self._transport.is_closing() and self._transport.get_write_buffer_size():
            self._linger()
        else:
            self._transport.abort()

    def pass_over(self, num_bytes: int) -> bool:
        """False: that was too much of it."""
        self._num_passed_over += num_bytes
        return self._num_passed_over <= self._limits.max_linger_bytes

    def cancel(self) -> None:
        """The connection is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
