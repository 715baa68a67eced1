"""/health and /ready. Neither enters the engine: they look at when it got on last, and at what.

ready     connected, serving, got on in the last READY_AGE_S, not draining, not overloaded: send it requests
healthy   not stuck for longer than the supervisor would have let it: else nobody keeps it alive
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from server.api.engine_client import EngineClient
from server.api.http.drain import Drain
from server.api.routes.get_route import get_route
from server.board import SERVING, Board

READY_AGE_S = 3.0
# A restarting engine is being kept alive: an orchestrator must not kill the whole server for it.
HEALTHY_AGE_S = 60.0
HEALTHY_START_AGE_S = 600.0  # while it starts or compiles, which shows no progress


class Progress(Protocol):
    """How the engine gets on."""

    def age_s(self) -> float:
        """Seconds since it last did."""
        ...

    def phase(self) -> int:
        """One of the board's."""
        ...


class BoardProgress:
    """As it says on its board, which this process only reads."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def age_s(self) -> float:
        return self._board.age_s()

    def phase(self) -> int:
        return self._board.phase


class HeardProgress:
    """As it was heard on the socket, where there is no board. It speaks twice a second, also when idle."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def age_s(self) -> float:
        return self._engine.silence_s()

    def phase(self) -> int:
        return SERVING


def health_router(
    engine: EngineClient,
    progress: Progress | None = None,
    drain: Drain | None = None,
    is_overloaded: Callable[[], bool] = lambda: False,
) -> APIRouter:
    router = APIRouter()
    drain = drain or Drain()
    progress = progress or HeardProgress(engine)

    @get_route(router, "/health")
    async def health() -> Response:
        is_serving = progress.phase() == SERVING
        return _answer(progress.age_s() <= (HEALTHY_AGE_S if is_serving else HEALTHY_START_AGE_S))

    @get_route(router, "/ready")
    async def ready() -> Response:
        is_getting_on = progress.phase() == SERVING and progress.age_s() <= READY_AGE_S
        takes_more = not drain.is_on and not is_overloaded()
        return _answer(engine.is_connected and is_getting_on and takes_more)

    return router


def _answer(is_good: bool) -> Response:
    if is_good:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "unavailable"}, 503, {"Retry-After": "1"})
