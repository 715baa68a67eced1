"""A run as a stream of events. It writes to the connection by itself, from the turn of the loop in which the
engine's frame came; the request's task only waits for the beginning and the end. What its client is too slow
for it leaves where it is, and the sequences do not stay in the engine for that.
"""

from __future__ import annotations

import asyncio
import time

from server.api.http.http_protocol import BodyWriter
from server.api.parking import PARK_AFTER_S, Parking, output_bytes
from server.api.reply.event_maker import EventMaker
from server.api.reply.run import Run
from server.api.reply.sse import PING

PING_AFTER_S = 15.0  # of silence; proxies cut connections that are silent for longer


class EventStream:
    """`begun`, then the response's head and `start`, then `ended`; `close` whatever happens."""

    def __init__(self, run: Run, body: BodyWriter) -> None:
        self._generation = run.generation
        self._body = body
        self._maker = EventMaker(run)
        self._unsent: list[bytes] = []  # of before `start`
        self._is_started = False
        self._is_over = False
        self._error: Exception | None = None
        self._begun = asyncio.Event()
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._written_at = time.monotonic()
        self._parking = Parking(self._generation, output_bytes(run.plan.params))
        self._timer = self._loop.call_later(PING_AFTER_S, self._on_timer)
        body.start(self._on_writable, self._on_paused)
        if body.is_paused:  # by what a request before this one has left
            self._on_paused()
        run.read_by(self._read)

    async def begun(self) -> None:
        """Returns when there is something to send; raises if the run breaks before: errors have a status."""
        await self._begun.wait()
        if self._error is not None and not self._unsent:
            raise self._error

    def start(self) -> None:
        """The response's head is sent: from now on events go out as they come."""
        self._is_started = True
        for data in self._unsent:
            self._body.write(data)
        self._unsent = []
        self._read()

    async def ended(self) -> None:
        """Returns when all is written, with [DONE]; raises what broke it, behind what came before."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._timer.cancel()
        self._body.stop()
        self._parking.close()

    def _read(self) -> None:
        """Of everything that came one write is made."""
        if self._is_over:
            return
        if self._body.is_paused:
            self._parking.on_waiting(self._body.num_unsent_bytes)
            return
        self._now = time.monotonic()
        try:
            events = self._maker.take(self._now)
            if events:
                self._write(b"".join(events))
        except Exception as error:  # of this stream alone; raised again in its own task
            self._end(error)
            return
        if not self._generation.is_running:
            self._end(self._generation.error)  # which the task writes

    def _write(self, data: bytes) -> None:
        self._written_at = self._now
        if self._is_started:
            self._body.write(data)
        else:
            self._unsent.append(data)
            self._begun.set()

    def _end(self, error: Exception | None) -> None:
        self._is_over = True
        self._error = error
        self._begun.set()
        self._ended.set()

    def _on_paused(self) -> None:
        """Also within a write. The timer is for the pings until then, which a full connection needs not."""
        self._timer.cancel()
        self._timer = self._loop.call_later(PARK_AFTER_S, self._on_stalled)

    def _on_stalled(self) -> None:
        self._parking.on_stalled()
        self._timer = self._loop.call_later(PARK_AFTER_S, self._on_stalled)

    def _on_writable(self) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(PING_AFTER_S, self._on_timer)
        self._read()  # and may be paused again
        self._parking.on_taken(is_waiting=self._body.is_paused)

    def _on_timer(self) -> None:
        """One timer, moved only when it is due: moving it for every token would cost more than the token."""
        self._now = time.monotonic()
        wait_s = self._written_at + PING_AFTER_S - self._now
        if wait_s <= 0 and not self._is_over:
            wait_s = PING_AFTER_S
            self._write(PING)
            if self._body.is_paused:
                return  # which has set the timer
        self._timer = self._loop.call_later(wait_s, self._on_timer)
