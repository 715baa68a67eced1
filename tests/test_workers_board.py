"""The words that api workers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.workers_board import WorkersBoard


@pytest.fixture
def board() -> Iterator[WorkersBoard]:
    board = WorkersBoard.create(3)
    yield board
    board.close()


def test_only_those_that_are_there_count(board: WorkersBoard) -> None:
    assert board.fewest_connections() == 0
    board.set_connections(0, 5)
    assert board.fewest_connections() == 5
    board.set_connections(2, 3)
    assert board.fewest_connections() == 3
    board.on_end(2)
    assert board.fewest_connections() == 5


def test_nothing_of_a_dead_worker_is_open(board: WorkersBoard) -> None:
    lives = [board.life(worker) for worker in range(3)]
    board.set_open_bytes(0, 10)
    board.set_open_bytes(1, 7)
    assert [board.open_bytes_of_others(worker) for worker in range(3)] == [7, 10, 17]
    board.on_end(1)
    assert [board.open_bytes_of_others(worker) for worker in range(3)] == [0, 10, 10]
    assert [board.life(worker) for worker in range(3)] == [lives[0], lives[1] + 1, lives[2]]


def test_another_process_sees_the_same(board: WorkersBoard) -> None:
    board.set_connections(1, 4)
    other = WorkersBoard(board.fd, 3)
    assert other.fewest_connections() == 4
    other.set_connections(1, 6)
    assert board.fewest_connections() == 6
