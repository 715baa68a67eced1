"""/health and /ready. Neither enters the engine: they look at when it was heard last."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from server.api.engine_client import EngineClient
from server.api.routes.get_route import get_route

READY_SILENCE_S = 3.0  # the engine speaks twice a second, also when idle
# A restarting engine is being kept alive: an orchestrator must not kill the whole server for it.
HEALTH_SILENCE_S = 60.0


def health_router(engine: EngineClient) -> APIRouter:
    router = APIRouter()

    @get_route(router, "/health")
    async def health() -> Response:
        return _answer(engine.silence_s() <= HEALTH_SILENCE_S)

    @get_route(router, "/ready")
    async def ready() -> Response:
        return _answer(engine.is_connected and engine.silence_s() <= READY_SILENCE_S)

    return router


def _answer(is_good: bool) -> Response:
    if is_good:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "unavailable"}, 503, {"Retry-After": "1"})
