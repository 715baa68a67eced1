"""The ring keeps the latest spans, whoever reads it, and answers what it is asked."""

from __future__ import annotations

import os

from server.profiling.ring import Cost, Span, SpanRing, noted


def test_it_keeps_the_latest_in_order_of_start() -> None:
    ring = SpanRing.create(4)
    record = ring.recorder()
    for at in range(3):
        record(7, 10 * at, 10 * at + 5)
    assert not ring.is_full
    assert ring.spans() == [Span(7, 0, 5), Span(7, 10, 15), Span(7, 20, 25)]
    for at in range(3, 6):
        record(7, 10 * at, 10 * at + 5)
    assert ring.is_full
    assert [span.start_ns for span in ring.spans()] == [20, 30, 40, 50]
    ring.close()


def test_what_contains_another_comes_first() -> None:
    ring = SpanRing.create(4)
    record = ring.recorder()
    record(2, 5, 8)  # as they end: the inner one first
    record(1, 5, 9)
    assert [span.part for span in ring.spans()] == [1, 2]
    ring.close()


def test_notes_are_kept_beside_parts() -> None:
    ring = SpanRing.create(1)
    ring.recorder()(noted(200, 1 << 44), 1, 2)
    assert ring.spans() == [Span(200, 1, 2, 1 << 44)]
    ring.close()


def test_another_process_sees_what_is_written_and_asked() -> None:
    ring = SpanRing.create(8)
    number = ring.ask(True)
    other = SpanRing(os.dup(ring.fd))  # as a child that has inherited it
    assert other.asked == (number, True)
    assert not ring.answered(number)
    other.attach(Cost(3, 4))
    other.recorder()(1, 2, 3)
    other.answer(number, 42)
    assert ring.answered(number)
    assert (ring.cpu_ns, ring.pid, ring.cost) == (42, os.getpid(), Cost(3, 4))
    assert ring.spans() == [Span(1, 2, 3)]
    other.close()
    ring.close()
