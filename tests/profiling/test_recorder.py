"""Spans are taken while they are asked for; otherwise every name stands for what it did before."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from server.profiling.recorder import SWITCH_SIGNAL, Patch, Recorder, measured_cost, offer
from server.profiling.ring import SpanRing


class Work:
    def outer(self, num: int, *, times: int = 1) -> int:
        return sum(self.inner(num) for _ in range(times))

    def inner(self, num: int) -> int:
        if num < 0:
            raise ValueError(num)
        return num


class More(Work):
    """Inherits what is patched."""


@pytest.fixture
def ring() -> Iterator[SpanRing]:
    made = SpanRing.create(64)
    yield made
    made.close()


def test_it_records_who_was_inside_whom(ring: SpanRing) -> None:
    recorder = Recorder([Patch(Work, "outer", 1), Patch(Work, "inner", 2)], ring.recorder())
    recorder.switch(True)
    try:
        assert More().outer(4, times=2) == 8
    finally:
        recorder.switch(False)
    outer, *inner = ring.spans()
    assert (outer.part, [span.part for span in inner]) == (1, [2, 2])
    assert all(outer.start_ns <= each.start_ns <= each.end_ns <= outer.end_ns for each in inner)


def test_off_means_as_if_it_had_never_been(ring: SpanRing) -> None:
    before = dict(vars(Work))
    recorder = Recorder([Patch(Work, "outer", 1), Patch(Work, "inner", 2)], ring.recorder())
    assert dict(vars(Work)) == before
    for is_on in (True, True, False, False):
        recorder.switch(is_on)
        assert (vars(Work)["outer"] is before["outer"]) is not is_on
    assert dict(vars(Work)) == before
    Work().outer(1)
    assert ring.spans() == []


def test_what_is_not_there_is_left_out(ring: SpanRing) -> None:
    module = ModuleType("of_another_version")
    recorder = Recorder(
        [Patch(module, "gone", 1), Patch(More, "inner", 2), Patch(Work, "inner", 3)],
        ring.recorder(),
    )
    recorder.switch(True)
    More().inner(1)
    recorder.switch(False)
    assert [span.part for span in ring.spans()] == [3]
    assert not hasattr(module, "gone")


def test_an_exception_passes_through_and_is_a_span(ring: SpanRing) -> None:
    recorder = Recorder([Patch(Work, "inner", 2)], ring.recorder())
    recorder.switch(True)
    with pytest.raises(ValueError, match="-1"):
        Work().inner(-1)
    recorder.switch(False)
    assert len(ring.spans()) == 1


def test_parts_may_follow_from_arguments_and_notes_from_results(ring: SpanRing) -> None:
    def part_of(args: tuple[Any, ...]) -> int:
        return 10 + int(args[1])

    recorder = Recorder(
        [
            Patch(Work, "inner", 2, part_of=part_of),
            Patch(Work, "outer", 1, note_of=lambda sum_: sum_),
        ],
        ring.recorder(),
    )
    recorder.switch(True)
    Work().outer(5, times=3)
    recorder.switch(False)
    assert [(span.part, span.note) for span in ring.spans()] == [(1, 15), *[(15, 0)] * 3]


def test_a_signal_switches_and_is_answered(ring: SpanRing) -> None:
    previous = signal.getsignal(SWITCH_SIGNAL)
    original = vars(Work)["inner"]
    try:
        offer(ring, [Patch(Work, "inner", 2)])
        assert ring.pid == os.getpid()
        for is_on in (True, False):
            number = ring.ask(is_on)
            os.kill(os.getpid(), SWITCH_SIGNAL)
            deadline = time.monotonic() + 5
            while not ring.answered(number) and time.monotonic() < deadline:
                time.sleep(0.001)
            assert ring.answered(number)
            assert (vars(Work)["inner"] is original) is not is_on
        assert ring.cpu_ns > 0
    finally:
        signal.signal(SWITCH_SIGNAL, previous)


def test_the_cost_of_a_span_is_measured() -> None:
    cost = measured_cost()
    assert 0 < sum(cost) < 1_000_000  # below a millisecond on any machine
    assert min(cost) >= 0
