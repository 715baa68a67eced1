"""Limits of keys over several workers: as one KeyLimiter would have them, whoever is asked."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.admission import limits_table
from server.api.admission.key_limits import KeyLimiter
from server.api.admission.limits_table import LimitsTable, Taken
from server.api.admission.shared_limiter import SharedKeyLimiter
from server.api_keys import NO_LIMITS, KeyLimits

LIMITS = KeyLimits(requests_per_s=3.0, tokens_per_min=600.0, concurrent=4.0)


class World:
    """`num_workers` limiters over one memory."""

    def __init__(self, num_workers: int, limits: KeyLimits = LIMITS) -> None:
        self.limits = {"a": limits, "b": limits}
        self.lives = [1] * num_workers
        self.fd = os.memfd_create("limits")
        self.workers = [self.begun(index) for index in range(num_workers)]

    def begun(self, index: int) -> SharedKeyLimiter:
        """A process of that worker, with its own view of the memory."""
        table = LimitsTable(self.fd, index, len(self.lives))
        return SharedKeyLimiter(self.limits_of, table, index, lambda worker: self.lives[worker])

    def limits_of(self, name: str) -> KeyLimits:
        return self.limits.get(name, NO_LIMITS)


Make = Callable[..., World]


@pytest.fixture
def make() -> Iterator[Make]:
    worlds: list[World] = []

    def make(num_workers: int = 3, limits: KeyLimits = LIMITS) -> World:
        worlds.append(World(num_workers, limits))
        return worlds[-1]

    yield make
    for world in worlds:
        os.close(world.fd)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), num_workers=st.integers(1, 5))
def test_whoever_is_asked_answers_as_one_limiter_would(seed: int, num_workers: int) -> None:
    rng, now_s = random.Random(seed), 100.0
    world = World(num_workers)
    try:
        one = KeyLimiter(world.limits_of)
        is_open: list[tuple[int, str, int]] = []
        for _ in range(80):
            now_s += rng.choice((0.0, 0.001, 0.1, 1.0, 30.0))
            name, worker = rng.choice("ab"), rng.randrange(num_workers)
            limiter, num_tokens = world.workers[worker], rng.choice((1, 50, 400, 1000))
            if is_open and rng.random() < 0.4:
                at, of, most = is_open.pop(rng.randrange(len(is_open)))
                unused = rng.randrange(most + 1)
                world.workers[at].close(of, unused, now_s)
                one.close(of, unused, now_s)
            mine, theirs = (each.shortage(name, num_tokens, now_s) for each in (limiter, one))
            assert (mine is None) is (theirs is None)
            if mine is not None and theirs is not None:
                assert mine.what == theirs.what
                assert mine.wait_s == pytest.approx(theirs.wait_s, abs=1e-6)
                continue
            limiter.open(name, num_tokens, now_s)
            one.open(name, num_tokens, now_s)
            is_open.append((worker, name, num_tokens))
            for each in world.workers:
                for got, wanted in zip(
                    each.standings(name, now_s), one.standings(name, now_s), strict=True
                ):
                    assert got[:2] == wanted[:2]
                    assert abs(got.remaining - wanted.remaining) <= 1  # rounded down at an edge
                    assert got.reset_s == pytest.approx(wanted.reset_s, abs=1e-6)
    finally:
        os.close(world.fd)


def test_nothing_is_lost_where_two_take_at_the_same_time(make: Make) -> None:
    """Both have read before either has written: each is seen by whoever comes next."""
    world = make(3, KeyLimits(requests_per_s=10.0))
    first, second, third = world.workers
    for worker in world.workers:
        worker.open("a", 0, 100.0)
    now = second._now("a", world.limits["a"], 100.0)
    first.open("a", 0, 100.0)
    second._table.write(
        "a",
        Taken(
            1, 2, now.own.requests + 1, 0.0, 100.0, now.own.level_requests + 1, 0.0,
            (now.own.seen_requests[0], now.own.requests + 1, now.own.seen_requests[2]),
            now.own.seen_tokens,
        ),
    )  # fmt: skip
    assert third.standings("a", 100.0)[0].remaining == 10 - 5


def test_a_dead_workers_requests_are_open_no_more_and_stay_taken(make: Make) -> None:
    world = make(2, KeyLimits(requests_per_s=8.0, concurrent=4.0))
    first, second = world.workers
    for worker in (first, first, second, second):
        worker.open("a", 0, 100.0)
    assert second.shortage("a", 0, 100.0) is not None
    world.lives[0] = 2
    assert second.shortage("a", 0, 100.0) is None
    successor = world.begun(0)
    assert successor.shortage("a", 0, 100.0) is None
    assert successor.standings("a", 100.0)[0].remaining == 4
    successor.open("a", 0, 100.0)
    successor.open("a", 0, 100.0)
    assert [each.shortage("a", 0, 100.0) is None for each in (successor, second)] == [False] * 2
    assert second.standings("a", 100.0)[0].remaining == 2


def test_limits_that_come_change_and_go(make: Make) -> None:
    world = make(2, KeyLimits(requests_per_s=4.0, concurrent=2.0))
    first, second = world.workers
    first.open("a", 0, 100.0)
    world.limits["a"] = KeyLimits(requests_per_s=8.0, concurrent=2.0)
    assert second.standings("a", 100.0)[0][1:3] == (8, 7)  # what was taken stays taken
    world.limits["a"] = NO_LIMITS
    assert first.shortage("a", 10**9, 100.0) is None
    assert first.standings("a", 100.0) == []
    first.close("a", 0, 100.0)
    world.limits["a"] = LIMITS
    for _ in range(3):
        second.open("a", 0, 200.0)
    assert second.shortage("a", 0, 210.0) is None  # three are open, and none of the one before
    second.open("a", 0, 210.0)
    assert first.shortage("a", 0, 220.0) is not None


def test_names_beyond_the_table_are_counted_by_each(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits_table, "MAX_NAMES", 1)
    world = make(2, KeyLimits(concurrent=1.0))
    first, second = world.workers
    first.open("a", 0, 100.0)
    first.open("b", 0, 100.0)
    first.close("b", 0, 100.0)
    first.open("b", 0, 100.0)
    assert "counts new ones by itself" in caplog.text
    assert len(caplog.records) == 1
    assert first.shortage("b", 0, 100.0) is not None
    assert second.shortage("a", 0, 100.0) is not None
    assert second.shortage("b", 0, 100.0) is None


def test_a_record_is_whole_while_it_is_being_written(make: Make) -> None:
    """A writer that dies in the midst has spoilt the copy that nobody reads."""
    world = make(2)
    table = LimitsTable(world.fd, 0, 2)
    taken = Taken(1, 2, 3.0, 4.0, 5.0, 6.0, 7.0, (8.0, 9.0), (10.0, 11.0))
    assert table.write("a", taken)
    assert LimitsTable(world.fd, 1, 2).read(0, "a") == taken
    assert table.read(0, "a") == taken
    at = table._known[0][limits_table._hash("a")]
    table._record.pack_into(table._memory, table._offset(at, 1), *[0.0] * 11)
    assert LimitsTable(world.fd, 1, 2).read(0, "a") == taken
    assert table.read(1, "a") is None
    assert table.read(0, "b") is None
