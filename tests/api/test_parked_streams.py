"""A stream whose client stops reading leaves the engine, and its text is the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from server.api.admission.service_rate import ServiceRate
from server.api.admission.ticket import Ticket
from server.api.admission.waiting_room import NOTHING, Load, WaitingRoom
from server.api.generation import Lot
from server.api.parking import PARK_ABOVE_BYTES, output_bytes
from server.api.reply import event_stream
from server.sequence import SamplingParams
from tests.api.test_event_stream import Rig, in_loop

PARK_AFTER_S = 0.02
OUTPUT_BYTES = output_bytes(SamplingParams(max_tokens=1, seed=0))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "PARK_AFTER_S", PARK_AFTER_S)


class Notes(Lot):
    """What was asked of it."""

    def __init__(self, *, is_open: bool = True) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.is_open = is_open
        self.changed = asyncio.Event()

    def park(self, seq_ids: Iterable[int]) -> bool:
        self._note("park", seq_ids)
        return self.is_open

    def unpark(self, seq_ids: Iterable[int]) -> None:
        self._note("unpark", seq_ids)

    def _note(self, what: str, seq_ids: Iterable[int]) -> None:
        self.calls.append(f"{what} {sorted(seq_ids)}")
        self.changed.set()

    async def next(self) -> str:
        await asyncio.wait_for(self.changed.wait(), 10)
        self.changed.clear()
        return self.calls[-1]


async def make(**fields: Any) -> tuple[Rig, Notes]:
    rig, notes = await Rig.make(**fields), Notes()
    rig.run.generation.lot = notes
    return rig, notes


def pause(rig: Rig) -> None:
    rig.body.is_paused = True
    assert rig.body.on_paused is not None
    rig.body.on_paused()


def resume(rig: Rig) -> None:
    rig.body.is_paused = False
    rig.body.on_writable()


def test_one_that_takes_nothing_is_parked_and_comes_back_when_it_reads() -> None:
    async def scenario() -> None:
        rig, notes = await make(n=2)
        rig.deliver(97)
        await asyncio.sleep(0)
        pause(rig)
        assert await notes.next() == "park [100, 101]"
        rig.deliver(98)  # it was on its way
        await asyncio.sleep(3 * PARK_AFTER_S)
        assert notes.calls == ["park [100, 101]"]
        resume(rig)
        assert notes.calls[1:] == ["unpark [100, 101]"]
        assert rig.texts() == ["a", "b"]
        rig.stream.close()

    in_loop(scenario)


def read_on(rig: Rig, read: asyncio.Event) -> None:
    resume(rig)
    read.set()


def test_one_that_reads_in_time_stays() -> None:
    async def scenario() -> None:
        rig, notes = await make()
        for _ in range(10):
            read = asyncio.Event()
            # as a timer: however late the loop is, it is due before that of the parking
            asyncio.get_running_loop().call_later(PARK_AFTER_S / 4, read_on, rig, read)
            pause(rig)
            await read.wait()
        await asyncio.sleep(2 * PARK_AFTER_S)
        assert notes.calls == []
        rig.stream.close()

    in_loop(scenario)


def test_one_that_is_far_behind_is_parked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "PARK_AFTER_S", 1e6)

    async def scenario() -> None:
        rig, notes = await make()
        rig.body.num_unsent_bytes = PARK_ABOVE_BYTES // 2
        pause(rig)
        num_steps = PARK_ABOVE_BYTES // 2 // OUTPUT_BYTES
        for _ in range(num_steps):
            rig.deliver(97)
            await asyncio.sleep(0)
        assert notes.calls == []
        rig.deliver(97)
        await asyncio.sleep(0)
        assert notes.calls == ["park [100]"]
        resume(rig)
        assert "".join(rig.texts()) == "a" * (num_steps + 1)
        assert rig.run.generation.lot.unread.num_bytes == 0
        rig.stream.close()

    in_loop(scenario)


def test_it_stays_parked_where_what_waited_fills_the_connection_again() -> None:
    async def scenario() -> None:
        rig, notes = await make()
        pause(rig)
        await notes.next()
        rig.deliver(97)
        await asyncio.sleep(0)
        write = rig.body.write

        def fill(data: bytes) -> None:
            write(data)
            pause(rig)

        rig.body.write = fill  # type: ignore[method-assign]
        resume(rig)
        await asyncio.sleep(0)
        assert (rig.texts(), notes.calls) == (["a"], ["park [100]"])
        resume(rig)
        assert notes.calls == ["park [100]", "unpark [100]"]
        rig.stream.close()

    in_loop(scenario)


def test_one_that_could_not_be_parked_is_asked_for_again() -> None:
    """A suspect, say."""

    async def scenario() -> None:
        rig, notes = await make()
        notes.is_open = False
        pause(rig)
        await notes.next()
        notes.is_open = True
        assert await notes.next() == "park [100]"
        assert rig.run.generation.is_parked
        rig.stream.close()

    in_loop(scenario)


def test_what_has_ended_is_not_parked() -> None:
    async def scenario() -> None:
        rig, notes = await make()
        pause(rig)
        rig.deliver(97, is_last=True)
        await asyncio.sleep(3 * PARK_AFTER_S)
        resume(rig)
        assert rig.events()[-1] == "[DONE]"
        assert notes.calls == []
        rig.stream.close()

    in_loop(scenario)


def test_a_connection_that_is_full_before_the_head_counts_too() -> None:
    """Of a reply before it that nobody reads: HTTP's pipelining."""

    async def scenario() -> None:
        started = await Rig.make()
        started.stream.close()
        notes = Notes()
        started.run.generation.lot = notes
        started.body.is_paused = True
        stream = event_stream.EventStream(started.run, started.body)  # type: ignore[arg-type]
        started.deliver(97)
        assert await notes.next() == "park [100]"
        assert started.body.written == []
        resume(started)
        await asyncio.wait_for(stream.begun(), 10)
        stream.start()
        assert (started.texts(), notes.calls[1:]) == (["a"], ["unpark [100]"])
        stream.close()

    in_loop(scenario)


def test_pings_stop_while_it_is_full_and_go_on_after_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "PING_AFTER_S", 0.01)

    async def scenario() -> None:
        rig, notes = await make()
        pause(rig)
        await notes.next()
        await asyncio.sleep(0.05)
        assert rig.body.written == []
        resume(rig)
        while not rig.body.written:
            await asyncio.sleep(0.001)
        assert rig.body.written[0] == b": ping\n\n"
        rig.stream.close()

    in_loop(scenario)


def test_one_that_reads_a_byte_now_and_then_never_stays_while_it_is_behind() -> None:
    """And costs a bounded number of bytes, however long the stream is."""

    async def scenario() -> None:
        rig, notes = await make()
        body, generation = rig.body, rig.run.generation
        high, low, unsent, num_taken = 2000, 500, 0, 0
        write = body.write

        def count(data: bytes) -> None:
            nonlocal unsent
            unsent += len(data)
            write(data)
            if unsent > high and not body.is_paused:
                pause(rig)

        body.write = count  # type: ignore[method-assign]
        most, num_tokens = 0, 0
        for _ in range(40_000):
            if not generation.is_parked:
                rig.deliver(97 + num_tokens % 26)
                num_tokens += 1
            if unsent:
                unsent, num_taken = unsent - 1, num_taken + 1
            body.num_unsent_bytes = unsent
            if body.is_paused and unsent <= low:
                resume(rig)
            await asyncio.sleep(0)
            most = max(most, unsent + OUTPUT_BYTES * generation.num_waiting)
        assert notes.calls[:3] == ["park [100]", "unpark [100]", "park [100]"]
        assert most < PARK_ABOVE_BYTES + high
        rig.stream.close()

    in_loop(scenario)


def test_a_place_counts_only_while_its_sequence_is_in_an_engine() -> None:
    """Parked, or at its end with text that its reader has not taken: nobody waits for its row."""

    async def scenario() -> None:
        room = WaitingRoom()
        loads = [Load(1, 2, 200)] * 3
        room.enter("ann", Load(3, 6, 600))
        ticket = Ticket(room, "ann", 2, loads, ServiceRate(), lambda _: None)
        rig, notes = await make(n=3, places=ticket.places)
        rig.deliver(97, 0)
        await asyncio.sleep(0)
        assert (room.num_open, len(room.running), room.total.num_sequences) == (3, 1, 2)
        pause(rig)
        await notes.next()
        assert (room.num_open, len(room.running), room.total) == (0, 0, NOTHING)
        rig.deliver(98, 1, is_last=True)  # it was on its way
        resume(rig)
        await asyncio.sleep(0)
        assert notes.calls[1:] == ["unpark [100, 102]"]
        assert (room.num_open, len(room.running), room.total.num_sequences) == (2, 1, 1)
        rig.deliver(98, 2)
        await asyncio.sleep(0)
        rig.body.is_paused = True
        rig.deliver(99, 0, is_last=True)
        assert (room.num_open, len(room.running), room.total) == (1, 1, NOTHING)
        rig.stream.close()
        rig.run.end()
        assert (room.num_open, len(room.running), room.total) == (0, 0, NOTHING)

    in_loop(scenario)
