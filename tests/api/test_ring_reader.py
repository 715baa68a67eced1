"""Streams that outlive their readers: every event once, in order, with its number, whoever reads and how."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.kept.kept_runs import KeptRuns
from server.api.kept.ring_reader import RingReader
from server.errors import EngineGoneError
from tests.api.kept_rig import Body, Client, World, Written, planned

PLAN = planned()
USAGE = planned(stream_options={"include_usage": True, "resumable": True})
A, B, C = b"abc"


def whole(world: World, written: Written) -> bytes:
    """What a reader of all of it gets; its stream must have ended."""
    return Client(written).body.data


def test_each_event_has_the_streams_id_and_its_number() -> None:
    world = World()
    written = world.stream(USAGE, "5eed")
    client = Client(written)
    written.deliver(A, B)
    world.turn()
    written.deliver(C, is_last=True)
    world.turn()
    events = client.body.data.split(b"\n\n")
    assert [event.split(b"\n")[0] for event in events[:-1]] == [
        b"id: 5eed:%d" % n for n in range(5)
    ]
    assert b'"choices":[],"usage":{' in events[3]
    assert events[4] == b"id: 5eed:4\ndata: [DONE]"
    assert (client.ends, client.text) == (["complete"], "abc")
    assert written.ends == [None]


def test_without_ids_it_is_the_bytes_of_any_stream() -> None:
    world = World()
    written = world.stream(PLAN)
    body, ends = Body(), []
    reader = RingReader(written.stream, body, 0, ends.append, has_ids=False)
    written.stream.attach(reader)
    reader.start()
    written.deliver(A, B, is_last=True)
    world.turn()
    with_ids = Client(written).body.events()
    assert body.data == b"".join(data for _, data in with_ids)
    assert ends == ["complete"]


def test_nothing_is_written_before_the_head_but_it_is_told() -> None:
    world = World()
    written = world.stream(PLAN)
    body, due = Body(), []
    reader = RingReader(written.stream, body, 0, lambda _: None, on_due=lambda: due.append(1))
    written.stream.attach(reader)
    assert due == []
    written.deliver(A)
    world.turn()
    assert (due, body.data) == ([1], b"")
    reader.start()
    assert len(body.events()) == 1


def test_the_run_goes_on_without_a_reader() -> None:
    world = World()
    written = world.stream(PLAN)
    client = Client(written)
    written.deliver(A)
    world.turn()
    client.reader.close()
    written.deliver(B)
    world.turn()
    written.deliver(C, is_last=True)
    world.turn()
    assert (client.text, client.ends) == ("a", [])
    assert written.stream.is_complete
    assert Client(written, 1).text == "bc"
    assert world.aborted == []


def test_a_second_reader_takes_over_also_where_the_first_is_stuck() -> None:
    world = World()
    written = world.stream(PLAN)
    first = Client(written, window=0)
    written.deliver(A)
    world.turn()
    written.deliver(B)
    world.turn()
    assert first.numbers == [0]
    second = Client(written, 1)
    assert (first.ends, second.text) == (["replaced"], "b")
    first.body.widen(1 << 20)
    written.deliver(C, is_last=True)
    world.turn()
    assert (first.numbers, second.numbers) == ([0], [1, 2, 3])
    assert second.ends == ["complete"]


def test_what_breaks_the_run_is_the_last_event_also_later() -> None:
    world = World()
    written = world.stream(PLAN)
    client = Client(written)
    written.deliver(A)
    world.turn()
    written.generation.fail(EngineGoneError("gone"))
    world.turn()
    number, data = client.body.events()[-1]
    assert (number, data[:45]) == (1, b'data: {"error":{"message":"The engine is not ')
    assert client.ends == ["complete"]
    assert [type(error) for error in written.ends] == [EngineGoneError]
    assert not written.stream.is_stillborn
    assert Client(written, 1).body.data == client.body.data[-len(data) - len(b"id: s:1\n") :]


def test_a_fault_in_the_text_breaks_only_its_stream() -> None:
    world = World()
    broken, sound = world.stream(PLAN, "b"), world.stream(PLAN, "s")
    broken.deliver(1 << 20)  # no such token
    sound.deliver(A, is_last=True)
    world.turn()
    assert broken.stream.is_stillborn
    assert world.aborted == [0]
    assert Client(sound).text == "a"


def test_a_slow_reader_keeps_its_events_and_the_rest_waits_joined() -> None:
    """A full ring drops nothing that an attached reader has not had."""
    world = World()
    written = world.stream(PLAN, max_bytes=1000)
    client = Client(written, window=0)
    for step in range(100):
        written.deliver(A, is_last=step == 99)
        world.turn()
    ring = written.stream.ring
    assert 1000 < ring.num_bytes < 1500
    assert not written.stream.is_complete
    client.body.widen(1 << 20)
    assert client.text == "a" * 100
    assert client.numbers == list(range(len(client.numbers)))
    assert len(client.numbers) < 20
    assert client.ends == ["complete"]
    assert world.aborted == []


def test_a_full_ring_forgets_what_its_reader_has_had() -> None:
    world = World()
    written = world.stream(PLAN, max_bytes=1000)
    client = Client(written)
    for _ in range(100):
        written.deliver(A)
        world.turn()
    ring = written.stream.ring
    assert client.text == "a" * 100
    assert ring.num_bytes <= 1000
    assert 90 < ring.first < 100
    with pytest.raises(LookupError):
        Client(written, ring.first - 1)
    assert client.ends == []  # who cannot read takes nothing over
    assert Client(written, ring.first).numbers == list(range(ring.first, 100))


def test_a_full_ring_that_nobody_reads_ends_the_run_once_an_unread_event_would_go() -> None:
    world = World()
    written = world.stream(PLAN, max_bytes=1000)
    client = Client(written)
    for _ in range(3):
        written.deliver(A)
        world.turn()
    client.reader.close()
    first = 0
    while not written.stream.is_dropped:
        first = written.stream.ring.first
        written.deliver(A)
        world.turn()
    assert first == 3  # what was read went first, and nothing else
    assert world.aborted == [0]
    assert world.kept.find_stream("s", "") is None
    assert (world.kept.num_bytes, written.gone) == (0, ["s"])


def test_what_waited_for_a_slow_reader_ends_the_run_when_that_leaves() -> None:
    """It is more than a ring holds, and nobody is there to make room."""
    world = World()
    written = world.stream(PLAN, max_bytes=1000)
    client = Client(written, window=0)
    for step in range(50):
        written.deliver(A, is_last=step == 49)
        world.turn()
    assert not written.stream.is_complete
    client.reader.close()
    assert written.stream.is_dropped
    assert world.kept.num_streams == 0


def test_one_write_of_a_long_history_is_bounded() -> None:
    world = World()
    written = world.stream(planned(max_tokens=200, n=5))
    for _ in range(200):
        for index in range(5):
            written.deliver(A, index=index)
        world.turn()
    client = Client(written, window=0)
    assert client.numbers == list(range(256))
    client.body.widen(1 << 20)
    assert client.numbers == list(range(1000))


Actions = st.lists(
    st.one_of(
        st.tuples(st.just("deliver"), st.integers(1, 12)),
        st.tuples(st.just("close"), st.just(0)),
        st.tuples(st.just("open"), st.integers(0, 4)),
        st.tuples(st.just("widen"), st.integers(1, 2000)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(Actions, st.sampled_from([1500, 4096, 1 << 20]), st.sampled_from([1000, 6000, 1 << 20]))
def test_no_event_is_lost_or_comes_twice_however_it_is_read(
    actions: list[tuple[str, int]], max_bytes: int, max_kept_bytes: int
) -> None:
    """A client resumes behind the last event that it has, up to `back` events earlier."""
    world = World(max_kept_bytes)
    written = world.stream(PLAN, max_bytes=max_bytes)
    received: list[bytes] = []
    client: Client | None = None
    num_sent = 0

    def collect(client: Client, start: int) -> None:
        for number, data in client.body.events():
            assert number <= len(received)
            if number < len(received):
                assert received[number] == data
            else:
                received.append(data)
        assert client.numbers == list(range(start, start + len(client.numbers)))

    start = 0
    for name, value in actions:
        if name == "deliver":
            num_sent += value
            written.deliver(*[97 + i % 26 for i in range(num_sent - value, num_sent)])
            world.turn()
        elif name == "close" and client is not None:
            client.reader.close()
        elif name == "open" and not written.stream.is_dropped:
            start = max(written.stream.ring.first, len(received) - value)
            assert start <= len(received)  # else something unread was dropped
            client = Client(written, start, window=300)
        elif name == "widen" and client is not None:
            client.body.widen(value)
        if client is not None:
            collect(client, start)
        assert written.stream.ring.num_bytes <= max_bytes + 12 * 300
    _finish(world, written, received, num_sent)


def _finish(world: World, written: Written, received: list[bytes], num_sent: int) -> None:
    if written.stream.is_dropped:
        assert world.aborted == [0]
        assert world.kept.num_bytes == 0
        return
    client = Client(written, len(received))
    written.deliver(A, is_last=True)
    world.turn()
    assert client.numbers == list(range(len(received), len(received) + len(client.numbers)))
    rest = [data for _, data in client.body.events()]
    assert (received + rest)[-1] == b"data: [DONE]\n\n"
    texts = [data.split(b'"text":"')[1].split(b'"')[0] for data in (received + rest)[:-1]]
    expected = bytes(97 + i % 26 for i in range(num_sent)) + b"a"
    assert b"".join(texts) == expected
    assert client.ends == ["complete"]
    assert world.kept.num_bytes == written.stream.ring.num_bytes


def test_a_dropped_stream_cuts_its_reader_and_ends_its_run() -> None:
    world = World()
    written = world.stream(PLAN)
    client = Client(written)
    written.deliver(A)
    world.turn()
    world.kept.clear()
    assert (client.ends, world.aborted, written.gone) == (["dropped"], [0], ["s"])
    written.deliver(B)
    world.turn()
    assert client.text == "a"
    assert isinstance(world.kept, KeptRuns)
    assert world.kept.num_streams == 0
