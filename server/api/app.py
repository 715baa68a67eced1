"""The application: routes and error shapes put together. Everything arrives as an argument."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from starlette.types import ASGIApp

from server import __version__
from server.api.completions import CompletionsRoute
from server.api.engine_client import EngineClient
from server.api.errors import add_error_handlers
from server.api.health import health_router
from server.api.metrics import Metrics
from server.api.models import models_router
from server.api.pages import pages_router
from server.api.request_id import RequestIdMiddleware
from server.tokenizer import Tokenizer


def create_app(tokenizer: Tokenizer, model_name: str, engine: EngineClient) -> ASGIApp:
    """Holds the connection to the engine from the app's start-up to its shutdown."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        connection = asyncio.create_task(engine.run())
        yield
        connection.cancel()
        with suppress(asyncio.CancelledError):
            await connection

    # no interactive pages: they would load scripts from other hosts
    app = FastAPI(
        title="Continuo",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # a redirect would repeat the Host header that a client made up
    )
    metrics = Metrics(model_name, engine)
    completions = CompletionsRoute(tokenizer, model_name, engine, metrics)
    app.add_api_route("/v1/completions", completions.__call__, methods=["POST"])
    app.include_router(models_router(model_name, engine))
    app.include_router(health_router(engine))
    app.include_router(pages_router(metrics))
    add_error_handlers(app)
    return RequestIdMiddleware(app)  # outermost: replies of the error handlers need the id, too
