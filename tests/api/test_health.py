"""/ready and /health by what the engine is at, and since when."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
from fastapi import FastAPI

from server.api.engine_client import EngineClient
from server.api.http.drain import Drain
from server.api.routes.health import BoardProgress, Progress, health_router
from server.board import COMPILING, SERVING, STARTING, Board


@dataclass
class Told:
    """A Progress."""

    seconds: float = 0.0
    at: int = SERVING

    def age_s(self) -> float:
        return self.seconds

    def phase(self) -> int:
        return self.at


class Probes:
    """The two of them, with nothing else around."""

    def __init__(self, progress: Progress | None) -> None:
        self.engine = SimpleNamespace(is_connected=True, silence_s=lambda: 0.0)
        self.drain = Drain()
        self._app = FastAPI()
        engine = cast(EngineClient, self.engine)
        self.is_overloaded = False
        router = health_router(engine, progress, self.drain, lambda: self.is_overloaded)
        self._app.include_router(router)

    def get(self, path: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.get(path)

        return asyncio.run(ask())

    def answers(self) -> tuple[int, int]:
        return self.get("/ready").status_code, self.get("/health").status_code


@pytest.mark.parametrize(
    ("phase", "seconds", "ready", "health"),
    [
        (SERVING, 0.0, 200, 200),
        (SERVING, 2.9, 200, 200),
        (SERVING, 3.1, 503, 200),
        (SERVING, 59.0, 503, 200),
        (SERVING, 61.0, 503, 503),
        (STARTING, 0.0, 503, 200),
        (STARTING, 599.0, 503, 200),
        (STARTING, 601.0, 503, 503),
        (COMPILING, 0.0, 503, 200),
        (COMPILING, 599.0, 503, 200),
        (COMPILING, 601.0, 503, 503),
    ],
)
def test_by_phase_and_age(phase: int, seconds: float, ready: int, health: int) -> None:
    assert Probes(Told(seconds, phase)).answers() == (ready, health)


def test_a_step_that_takes_long_and_gets_on_stays_ready(board: tuple[Board, list[int]]) -> None:
    """Five seconds, with a tick a second; then no more."""
    on_it, now_ns = board
    on_it.set_phase(SERVING)
    probes = Probes(BoardProgress(on_it))
    on_it.begin_step(0, b"")
    for _ in range(5):
        now_ns[0] += 10**9
        assert probes.answers() == (200, 200)
        on_it.tick()
    now_ns[0] += 31 * 10**8
    assert probes.answers() == (503, 200)
    now_ns[0] += 60 * 10**9
    assert probes.answers() == (503, 503)
    on_it.begin_life(2)  # another one is started
    assert probes.answers() == (503, 200)
    on_it.set_phase(SERVING)
    assert probes.answers() == (200, 200)


@pytest.fixture
def board() -> Iterator[tuple[Board, list[int]]]:
    now_ns = [10**12]
    board = Board.create(lambda: now_ns[0])
    board.begin_life(1)
    yield board, now_ns
    board.close()


def test_without_a_connection_it_is_not_ready_but_healthy() -> None:
    probes = Probes(Told())
    probes.engine.is_connected = False
    assert probes.answers() == (503, 200)


def test_while_it_drains_it_is_not_ready_but_healthy() -> None:
    probes = Probes(Told())
    probes.drain.begin()
    assert probes.answers() == (503, 200)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(1, (200, 200)), (4, (503, 200)), (61, (503,) * 2)]
)
def test_without_a_board_silence_counts(seconds: float, expected: tuple[int, int]) -> None:
    probes = Probes(None)
    probes.engine.silence_s = lambda: seconds
    assert probes.answers() == expected


def test_what_a_probe_is_told() -> None:
    reply = Probes(Told()).get("/ready")
    assert reply.json() == {"status": "ok"}
    reply = Probes(Told(100.0)).get("/ready")
    assert (reply.json(), reply.headers["retry-after"]) == ({"status": "unavailable"}, "1")


def test_while_requests_are_refused_for_overload_it_is_not_ready_but_healthy() -> None:
    probes = Probes(Told())
    probes.is_overloaded = True
    assert probes.answers() == (503, 200)
    probes.is_overloaded = False
    assert probes.answers() == (200, 200)
