"""GET /v1/models: the one model that is served, and what it can take."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from server.api.engine_client import EngineClient
from server.api.routes.completions import unknown_model
from server.api.routes.get_route import get_route


def models_router(model_name: str, engine: EngineClient) -> APIRouter:
    router = APIRouter(prefix="/v1/models")
    created = int(time.time())

    def card() -> dict[str, Any]:
        return {
            "id": model_name,
            "object": "model",
            "created": created,
            "owned_by": "continuo",
            "max_model_len": engine.info.max_model_len if engine.info else None,
        }

    @get_route(router, "")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card()]}

    @get_route(router, "/{model_id:path}")
    async def model(model_id: str) -> dict[str, Any]:
        if model_id != model_name:
            raise unknown_model()
        return card()

    return router
