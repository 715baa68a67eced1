"""What a process writes down is read by another one, also when it is dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from server.board import SERVING, STARTING, Board, packed_key
from server.sequence import SequenceKey

_DIES_IN_A_STEP = """
import os, signal, sys
from server.board import SERVING, Board, packed_key
board = Board(int(sys.argv[1]))
board.set_phase(SERVING)
board.begin_step(0, packed_key((0, 1)))
board.end_step(0)
board.begin_step(1, packed_key((0, 1)) + packed_key((3, 2**40)))
board.begin_step(2, packed_key((0, 1)) + packed_key((5, 6)))
os.kill(os.getpid(), signal.SIGABRT)
"""


def packed(*keys: SequenceKey) -> bytes:
    return b"".join(map(packed_key, keys))


class Clock:
    ns = 5_000_000_000

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Iterator[Board]:
    board = Board.create(clock)
    board.begin_life(1)
    yield board
    board.close()


def test_a_dead_process_leaves_what_it_was_at(board: Board) -> None:
    command = [sys.executable, "-c", _DIES_IN_A_STEP, str(board.fd)]
    process = subprocess.run(command, pass_fds=[board.fd], check=False)
    assert process.returncode == -signal.SIGABRT
    seen = board.read()
    assert (seen.life, seen.phase, seen.num_steps) == (1, SERVING, 1)
    assert sorted(seen.suspects) == [(0, 1), (3, 2**40), (5, 6)]


def test_a_new_life_begins_with_nothing(board: Board, clock: Clock) -> None:
    board.set_phase(SERVING)
    board.begin_step(0, packed((0, 1)))
    board.begin_submit(packed((0, 2)))
    clock.ns += 7_000_000_000
    assert board.age_s() == 7
    board.begin_life(2)
    assert board.read() == (2, STARTING, 12.0, 0, [])


def test_keys_are_those_of_the_last_step_of_each_slot(board: Board) -> None:
    keys, fewer = [(0, 1), (0, 2)], [(0, 2)]
    board.begin_step(0, packed(*keys))
    board.end_step(0)
    assert board.read().suspects == []
    board.begin_step(2, packed(*keys))
    assert board.read().suspects == keys
    board.end_step(2)
    board.begin_step(4, packed(*fewer))
    assert board.read().suspects == fewer
    board.begin_step(5, packed(*keys))
    assert sorted(board.read().suspects) == keys


def test_what_is_being_submitted_is_a_suspect(board: Board) -> None:
    board.begin_submit(packed((1, 9)))
    assert board.read().suspects == [(1, 9)]
    board.end_submit()
    assert board.read().suspects == []


def test_a_tick_is_progress_and_silence_is_age(board: Board, clock: Clock) -> None:
    clock.ns += 2_500_000_000
    assert board.age_s() == 2.5
    board.tick()
    assert board.age_s() == 0
    assert os.fstat(board.fd).st_size > 0
