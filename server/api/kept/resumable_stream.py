"""A run that goes on whatever its connections do: its events go into a ring, from which at most one reader
at a time takes them. While these two can take no more, its sequences are parked. No task, timer or
connection in here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from server.api.kept.ring import Ring
from server.api.kept.ring_reader import RingReader
from server.api.parking import PARK_AFTER_S, Parking, output_bytes
from server.api.reply.event_maker import EventMaker
from server.api.reply.run import Run
from server.api.reply.stream_errors import broken_stream_event

RING_BYTES = 2 << 20  # of one stream: some 10,000 events


class Room(Protocol):
    """Where streams are kept."""

    @property
    def is_full(self) -> bool: ...

    def update(self, kept: ResumableStream) -> None: ...

    def remove(self, kept: ResumableStream) -> None: ...


class ResumableStream:
    """From a submitted run to its last event, and then for as long as it is kept. It ends the run."""

    def __init__(
        self,
        run: Run,
        stream_id: str,
        room: Room,
        clock: Callable[[], float],
        *,
        max_bytes: int | None = None,
        max_unread_bytes: int | None = None,
        has_ids: bool = True,
        on_end: Callable[[Exception | None], None] = lambda _: None,
    ) -> None:
        """`room` must have it before its first event comes. `on_end` is called when the last event is in
        the ring, with what broke the run, if anything did. `has_ids`: its request's body asked for them."""
        self.id = stream_id
        self.has_ids = has_ids
        self.response_id = run.head.id
        self.run: Run | None = run  # until it has ended: a prompt can be large
        self.ring = Ring(RING_BYTES if max_bytes is None else max_bytes)
        self.is_complete = False
        self.is_dropped = False
        self.error: Exception | None = None
        self._maker: EventMaker | None = EventMaker(run)
        each = output_bytes(run.plan.params)
        self._parking = Parking(run.generation, each, max_unread_bytes)
        self._waiting_since: float | None = None  # for room
        self._room = room
        self._clock = clock
        self._on_end = on_end
        self._reader: RingReader | None = None
        self._num_had = 0  # events that the last reader was given
        self.left_at = clock()
        run.read_by(self._read)

    @property
    def num_bytes(self) -> int:
        return self.ring.num_bytes

    @property
    def has_reader(self) -> bool:
        return self._reader is not None

    @property
    def is_stillborn(self) -> bool:
        """It broke before it had anything to say: its one event is the error."""
        return self.error is not None and self.ring.next == 1

    def attach(self, reader: RingReader) -> None:
        """From now on it is read by this one alone; who read before is cut off: most likely that
        connection is dead and nobody has noticed. Raises LookupError if its first event is gone."""
        if self.is_dropped or reader.next < self.ring.first:
            raise LookupError("the events that it needs are gone")
        before, self._reader = self._reader, reader
        if before is not None:
            before.end("replaced")
        reader.pump()

    def detach(self, reader: RingReader) -> None:
        if self._reader is reader:
            self._reader = None
            self._num_had = reader.next
            self.left_at = self._clock()
            self._read()  # what waited for it waits no longer

    def on_read(self) -> None:
        """The reader has got on, so there may be room."""
        self._read()

    def on_time(self, now: float) -> None:
        """To be called about once a second."""
        if self._waiting_since is not None and now - self._waiting_since >= PARK_AFTER_S:
            self._parking.on_stalled()

    def drop(self) -> None:
        """Ends the run, cuts the reader, forgets every event."""
        if self.is_dropped:
            return
        self.is_dropped = True
        self._end_run()
        if self._reader is not None:
            self._reader.end("dropped")
        self.ring.drop_before(self.ring.next)

    def shed(self, num_bytes: int) -> None:
        self.ring.drop_before(self._num_read(), num_bytes)

    def _num_read(self) -> int:
        return self._num_had if self._reader is None else self._reader.next

    def _read(self) -> None:
        """Into the ring, then to the reader. What there is no room for stays where it is."""
        if self.run is None or self._maker is None:
            return
        if self._must_wait():
            self._wait()
            return
        try:
            for event in self._maker.take(self._clock()):
                self.ring.append(event)
            if not self.run.generation.is_running:
                self._complete(self.run.generation.error)
        except Exception as error:  # of this stream alone
            self._complete(error)
        if self._reader is not None:
            self._reader.pump()
        self._make_room()
        if self._waiting_since is not None:
            self._go_on()

    def _must_wait(self) -> bool:
        """Its reader is too slow, and what it has not had must stay."""
        reader = self._reader
        if reader is None or reader.next == self.ring.next:
            return False
        return self.ring.is_full or self._room.is_full

    def _wait(self) -> None:
        if self._waiting_since is None:
            self._waiting_since = self._clock()
        self._parking.on_waiting()

    def _go_on(self) -> None:
        """What waited is in the ring; that can have filled it again."""
        if self.run is not None:
            is_waiting = self._must_wait()
            self._waiting_since = self._clock() if is_waiting else None
            self._parking.on_taken(is_waiting=is_waiting)

    def _complete(self, error: Exception | None) -> None:
        self.error = error
        if error is not None:
            self.ring.append(broken_stream_event(error))
        self.is_complete = True
        self._end_run()
        self._on_end(error)

    def _end_run(self) -> None:
        if self.run is not None:
            self.run.end()
            self.run = self._maker = self._waiting_since = None
            self._parking.close()

    def _make_room(self) -> None:
        """What the reader has had goes first. Without a reader the next to go would be what nobody has had:
        then the stream could not be continued any more, and ends."""
        ring = self.ring
        if ring.is_full:
            ring.drop_before(self._num_read(), ring.num_bytes - ring.max_bytes)
            if ring.is_full and self._reader is None:
                self._room.remove(self)
                return
        self._room.update(self)
