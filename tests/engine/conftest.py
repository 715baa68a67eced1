from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.board import Board
from tests.engine.loop_world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(str(tmp_path / "engine.sock"))
    yield world
    world.close()


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create()
    yield board
    board.close()


@pytest.fixture
def ahead(tmp_path: Path) -> Iterator[World]:
    """One step in flight behind the one that runs."""
    world = World(str(tmp_path / "engine.sock"), max_steps_in_flight=2)
    yield world
    world.close()
