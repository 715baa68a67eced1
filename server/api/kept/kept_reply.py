"""A plain run that outlives its connection: whoever repeats the request gets the same reply, byte for byte.

Knows no HTTP; reply_response.py sends it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from server.api.kept.kept_runs import KeptRuns
from server.api.reply.plain_collector import PlainCollector
from server.api.reply.run import Run
from server.errors import ContinuoError, EngineGoneError
from server.faults import log_fault

_LARGE = 4  # a body of more than the room's cap divided by this is not kept
_PART_BYTES = 1 << 16  # between parts of so much, others get their turn


class KeptReply:
    """Owns its run. `num_bytes` counts the body once it is there; before, a run costs what any run costs.

    A run that broke and a body that is too large are for those who wait at that time, and then gone.
    """

    def __init__(self, run: Run, room: KeptRuns) -> None:
        """`room` must have it before the loop's next turn."""
        self.response_id = run.head.id
        self.run: Run | None = run  # until it has ended
        self.num_bytes = 0
        self.left_at = time.monotonic()
        self._room = room
        self._num_readers = 0
        self._body: bytes | None = None
        self._error: Exception | None = None
        self._is_read = asyncio.Event()
        self._is_complete = asyncio.Event()
        self._task = asyncio.create_task(self._finish(run))

    @property
    def has_reader(self) -> bool:
        return self._num_readers > 0

    @property
    def is_complete(self) -> bool:
        return self._is_complete.is_set()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While somebody waits for it, or is being sent it, it does not expire."""
        self._num_readers += 1
        try:
            yield
        finally:
            self._num_readers -= 1
            self.left_at = time.monotonic()

    async def body(self) -> bytes:
        """The whole JSON, once it is there. Raises what broke the run."""
        await self._is_complete.wait()
        if self._body is None:
            raise self._error or EngineGoneError("The reply was dropped.")
        return self._body

    def drop(self) -> None:
        """Who waits for a run that has not ended is told so; a body is sent to its end."""
        if not self.is_complete:
            self._task.cancel()
            self._end()

    def shed(self, num_bytes: int) -> None:
        """There is nothing to let go of but the whole."""

    async def _finish(self, run: Run) -> None:
        try:
            self._body = await self._collected(run)
        except Exception as error:  # of this request alone; raised again for everybody who waits
            self._error = error
            if not self.has_reader and not isinstance(error, ContinuoError):
                log_fault("a reply that nobody waits for failed", error)
        self._end()
        if self._body is None or len(self._body) > self._room.max_bytes // _LARGE:
            self._room.remove(self)
        else:
            self.num_bytes = len(self._body)
            self._room.update(self)

    async def _collected(self, run: Run) -> bytes:
        collector = PlainCollector(run, self._is_read.set)
        await self._is_read.wait()
        if collector.error is not None:
            raise collector.error
        body, paused_at = bytearray(), 0
        for part in collector.reply.parts(run.usage()):
            body += part
            if len(body) - paused_at > _PART_BYTES:
                paused_at = len(body)
                await asyncio.sleep(0)
        return bytes(body)

    def _end(self) -> None:
        """Nothing is left of the run but the body."""
        if self.run is not None:
            self.run.end()
            self.run = None
        self._is_complete.set()
