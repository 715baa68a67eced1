"""A client of a stream with ids: it is cut off, stalls, comes back, sometimes twice or too late."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from server.api.kept.ring_reader import RingReader
from server.api.reply.run import Run
from tests.simulation.api_process import ApiProcess
from tests.simulation.clients import Client, load
from tests.simulation.clock import Clock
from tests.simulation.workload import Asked


class SimConnection:
    """A `Body` with a window: above it the server is told to wait until the client has read."""

    def __init__(
        self, window: int, on_data: Callable[[bytes], None], on_fault: Callable[[Exception], None]
    ) -> None:
        """`on_fault` is told what `on_data` finds wrong: the server may well survive what we raise."""
        self._window = window
        self._on_fault = on_fault
        self._on_data = on_data
        self._unread = bytearray()
        self._on_writable: Callable[[], None] | None = None
        self.is_stalled = False  # the client does not read
        self.is_cut = False  # whatever is written is lost

    @property
    def is_paused(self) -> bool:
        return len(self._unread) > self._window

    def start(self, on_writable: Callable[[], None]) -> None:
        self._on_writable = on_writable

    def stop(self) -> None:
        self._on_writable = None

    def write(self, data: bytes) -> None:
        assert not self.is_paused, "I15: written above the window"
        if self.is_cut:
            return
        self._unread += data
        if not self.is_stalled:
            self.read()

    def read(self) -> None:
        self.is_stalled = False
        was_paused = self.is_paused
        data, self._unread = bytes(self._unread), bytearray()
        try:
            if data:
                self._on_data(data)
        except Exception as error:
            self._on_fault(error)
            raise
        if was_paused and self._on_writable is not None:
            self._on_writable()


class ResumingClient(Client):
    """Checks I11: event ids are 0..k, none twice, none left out."""

    def __init__(
        self,
        clock: Clock,
        rng: Random,
        api: ApiProcess,
        asked: Asked,
        run: Run,
        cut: float,
        *,
        has_room: bool,
    ) -> None:
        """`cut`: the chance that a piece of data is the last one of its connection. `has_room`: nothing is
        forgotten early."""
        super().__init__(clock, rng, api, asked)
        self._cut = cut
        self._has_room = has_room
        self._is_late = False  # it was away for longer than a stream is kept
        self._buffer = b""
        self._num_events = 0
        self._has_done = False
        self._reader: RingReader | None = None
        self._connection: SimConnection | None = None
        stream = api.keep(run, asked.key_name)
        self._own_id = stream.id
        self._attach(stream)

    def _attach(self, stream: Any) -> None:
        self._buffer = b""
        window = self.rng.choice((1 << 16, 1 << 16, 300))
        connection = SimConnection(
            window, lambda data: self._on_data(connection, data), self.clock.fail
        )
        reader = RingReader(
            stream, connection, self._num_events, lambda reason: self._on_end(reader, reason)
        )
        self._connection, self._reader = connection, reader
        stream.attach(reader)
        reader.start()

    def _on_data(self, connection: SimConnection, data: bytes) -> None:
        if connection is not self._connection or self.outcome:
            return
        chance = self.rng.random()
        if chance < self._cut:
            self._be_cut(connection, data[: self.rng.randrange(len(data))])
        elif chance < 2 * self._cut:
            connection.is_stalled = True
            stalled_s = self.rng.choice((0.03, 0.03, 7.0)) * self.rng.random()
            self.api.later(stalled_s, connection.read)
            self._take(data)
        else:
            self._take(data)

    def _be_cut(self, connection: SimConnection, data: bytes) -> None:
        """The server notices soon, late, or by the next reader that takes over."""
        connection.is_cut = True
        reader = self._reader
        self._connection = self._reader = None
        self._take(data)
        assert reader is not None
        notices_s = self.rng.choice((0.0, 0.0, 0.005, 5.0))
        self.api.later(notices_s, reader.close)
        if self.asked.is_impatient and self.rng.random() < 0.5:
            if not self.outcome:
                self.over("gone")  # it never comes back
            return
        self._is_late = self.rng.random() < 0.02
        self.clock.after(70.0 if self._is_late else 0.02 * self.rng.random(), self._resume)
        if self.rng.random() < 0.1:
            self.clock.after(0.03 * self.rng.random(), self._resume)  # a second one takes over

    def _resume(self) -> None:
        if self.outcome:
            return
        if not self.api.is_alive:
            self.over("lost")
            return
        other = {"anna": "ben", "ben": "anna"}[self.asked.key_name]
        assert self.api.kept.find_stream(self._own_id, other) is None, "a foreign key may read it"
        stream = self.api.kept.find_stream(self._own_id, self.asked.key_name)
        if stream is None or self._num_events < stream.ring.first:
            assert self._is_late or not self._has_room, "forgotten too early"
            self.over("expired")  # 404
        elif stream.is_complete and self._num_events == stream.ring.next:
            self._finish()  # 204
        else:
            self._attach(stream)
            self.api.settle()

    def _on_end(self, reader: RingReader, reason: str) -> None:
        if reader is not self._reader or self.outcome:
            return
        assert reason == "complete", "cut off while it was reading"

    def _take(self, data: bytes) -> None:
        self._buffer += data
        *events, self._buffer = self._buffer.split(b"\n\n")
        for event in events:
            self._on_event(event)

    def _on_event(self, event: bytes) -> None:
        head, _, body = event.partition(b"\n")
        assert head == b"id: %s:%d" % (self._own_id.encode(), self._num_events), "I11"
        assert body.startswith(b"data: ")
        self._num_events += 1
        assert not self.outcome, "an event behind the last"
        if body == b"data: [DONE]":
            self._finish()
            return
        chunk = load(body[6:])
        if "error" in chunk:
            self.check_failure(chunk["error"]["code"] or "internal")
            return
        for choice in chunk["choices"]:
            found = choice["logprobs"]
            logprobs = [] if found is None else found["token_logprobs"]
            self.add(choice["index"], choice["text"], logprobs)
            self.reasons[choice["index"]] = (choice["finish_reason"], choice["stop_reason"])
        if not chunk["choices"]:
            self.num_tokens = chunk["usage"]["completion_tokens"]

    def _finish(self) -> None:
        self.complete()

    def on_api_crash(self) -> None:
        self._reader = self._connection = None
        self.clock.after(0.01, self._resume)
