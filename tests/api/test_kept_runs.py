"""What is kept: who may read it, when it is forgotten, and the cap of bytes."""

from __future__ import annotations

import random

import pytest

from server.api.kept.kept_runs import EXPIRY_S, KeptRuns
from tests.api.kept_rig import Client, World, planned

PLAN = planned()


class Thing:
    """Something that is kept, of any size."""

    def __init__(self, num_bytes: int, left_at: float = 0.0, *, has_reader: bool = False) -> None:
        self.num_bytes = num_bytes
        self.left_at = left_at
        self.has_reader = has_reader
        self.history = 0  # of num_bytes: what its reader has had
        self.num_drops = 0

    def drop(self) -> None:
        self.num_drops += 1

    def shed(self, num_bytes: int) -> None:
        freed = min(num_bytes, self.history)
        self.history -= freed
        self.num_bytes -= freed


def test_a_stream_is_found_by_its_id_and_its_key_together() -> None:
    world = World()
    written = world.stream(PLAN, "1d", key_name="alice")
    assert world.kept.find_stream("1d", "alice") is written.stream
    for stream_id, key_name in (("1d", "bob"), ("1d", ""), ("2d", "alice"), ("2d", "")):
        assert world.kept.find_stream(stream_id, key_name) is None


def test_without_keys_the_id_is_enough() -> None:
    world = World()
    written = world.stream(PLAN, "1d")
    assert world.kept.find_stream("1d", "") is written.stream
    assert world.kept.find_stream("2d", "") is None


@pytest.mark.parametrize("is_complete", [False, True])
def test_it_expires_a_minute_after_its_last_reader_left(is_complete: bool) -> None:
    world = World()
    written = world.stream(PLAN)
    client = Client(written)
    written.deliver(97)
    world.turn()
    world.now = 1000.0
    world.kept.sweep(world.now)
    if is_complete:
        written.deliver(98, is_last=True)
        world.turn()
    else:
        client.reader.close()
    world.kept.sweep(1000.0 + EXPIRY_S - 0.1)
    assert world.kept.find_stream("s", "") is written.stream
    world.kept.sweep(1000.0 + EXPIRY_S)
    assert world.kept.find_stream("s", "") is None
    assert world.kept.num_bytes == world.kept.num_streams == 0
    assert written.gone == ["s"]
    assert world.aborted == ([] if is_complete else [0])


def test_a_resumed_stream_does_not_expire() -> None:
    world = World()
    written = world.stream(PLAN)
    Client(written).reader.close()
    Client(written)
    world.kept.sweep(10 * EXPIRY_S)
    assert world.kept.find_stream("s", "") is written.stream


def test_over_the_cap_the_one_goes_that_lost_its_reader_first() -> None:
    kept = KeptRuns(1600)
    things = [Thing(500, left_at) for left_at in (3.0, 1.0, 2.0)]
    for thing in things:
        kept.add(thing, "")
    assert [thing.num_drops for thing in things] == [0, 0, 0]
    things[0].num_bytes = 650
    kept.update(things[0])
    assert [thing.num_drops for thing in things] == [0, 1, 0]
    assert kept.num_bytes == 1150


def test_then_what_readers_have_had_goes_the_oldest_stream_first() -> None:
    kept = KeptRuns(1600)
    old, young = (Thing(700, has_reader=True) for _ in range(2))
    left = Thing(100)
    for thing in (old, young, left):
        kept.add(thing, "")
        thing.history = thing.num_bytes - 50
    young.num_bytes += 300
    kept.update(young)
    assert left.num_drops == 1
    assert (old.num_bytes, young.num_bytes) == (500, 1000)
    assert kept.num_bytes == 1500
    assert old.num_drops == young.num_drops == 0


def test_what_slow_readers_have_not_had_stays_and_their_streams_wait() -> None:
    world = World(2000)
    slow = [world.stream(PLAN, name) for name in ("a", "b")]
    clients = [Client(written, window=0) for written in slow]
    for step in range(50):
        for written in slow:
            written.deliver(97, is_last=step == 49)
        world.turn()
    assert world.kept.is_full
    assert world.kept.num_bytes < 2000 + 2 * 400
    for client in clients:
        client.body.widen(1 << 20)
        assert (client.text, client.ends) == ("a" * 50, ["complete"])
    assert world.aborted == []
    world.kept.sweep(0.0)
    assert world.kept.num_bytes <= 2000


def test_what_slow_readers_fill_is_not_looked_through_for_every_event() -> None:
    kept = KeptRuns(1600)
    thing = Thing(1700, has_reader=True)
    kept.add(thing, "")
    calls: list[int] = []
    thing.shed = calls.append  # type: ignore[method-assign]
    for num_bytes in (1710, 1720):
        thing.num_bytes = num_bytes
        kept.update(thing)
    assert calls == []
    kept.sweep(0.0)
    assert calls != []


def test_each_costs_what_holds_it_too() -> None:
    """Many short replies take more memory than their bytes."""
    kept = KeptRuns(1600, bytes_each=100)
    things = [Thing(1, left_at=float(i)) for i in range(16)]
    for thing in things:
        kept.add(thing, "")
    assert kept.num_bytes <= 1600
    assert [thing.num_drops for thing in things] == [1] * 2 + [0] * 14
    for thing in things:
        kept.remove(thing)
    assert kept.num_bytes == 0


def test_a_thing_that_is_removed_is_dropped_once() -> None:
    kept, gone = KeptRuns(100), []
    thing = Thing(50)
    kept.add(thing, "", on_gone=lambda: gone.append(1))
    kept.remove(thing)
    kept.remove(thing)
    kept.update(thing)
    assert (thing.num_drops, gone, kept.num_bytes) == (1, [1], 0)


@pytest.mark.parametrize("seed", range(20))
def test_its_bytes_are_always_those_of_what_it_holds(seed: int) -> None:
    chance = random.Random(seed)
    kept, things, now = KeptRuns(10_000), list[Thing](), 0.0
    for _ in range(300):
        now += chance.random() * 3
        if chance.random() < 0.3:
            things.append(Thing(chance.randrange(2000), now, has_reader=chance.random() < 0.3))
            kept.add(things[-1], "")
        elif things:
            thing = chance.choice(things)
            thing.num_bytes = chance.randrange(2000)
            thing.left_at, thing.has_reader = now, chance.random() < 0.3
            kept.update(thing)
        if has_swept := chance.random() < 0.1:
            kept.sweep(now)
        held = [thing for thing in things if not thing.num_drops]
        assert kept.num_bytes == sum(thing.num_bytes for thing in held)
        if has_swept and kept.is_full:
            assert all(thing.has_reader or not thing.num_bytes for thing in held)
    kept.sweep(now + 2 * EXPIRY_S)
    assert all(thing.num_drops or thing.has_reader for thing in things)
    assert max(thing.num_drops for thing in things) == 1
