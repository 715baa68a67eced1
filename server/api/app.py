"""The application: routes and error shapes put together. Everything arrives as an argument."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.types import ASGIApp

from server import __version__
from server.api.docs.docs import docs_router
from server.api.docs.openapi import openapi_document
from server.api.engine_client import EngineClient
from server.api.http.auth import AuthMiddleware
from server.api.http.cors import Cors
from server.api.http.errors import add_error_handlers
from server.api.http.request_id import RequestIdMiddleware
from server.api.http.request_log import RequestLogMiddleware
from server.api.metrics.metrics import Metrics
from server.api.routes.completions import CompletionsRoute
from server.api.routes.health import health_router
from server.api.routes.models import models_router
from server.api.routes.pages import pages_router
from server.api.routes.tokenize import tokenize_router
from server.api_keys import KeyFile
from server.config import EngineConfig
from server.tokenizer import Tokenizer


@dataclass(frozen=True)
class Doors:
    """Who may come in, and what is written down of it."""

    keys: KeyFile | None = None  # None: no key is needed
    origins: tuple[str, ...] = ()
    logs_requests: bool = False


def create_app(
    tokenizer: Tokenizer,
    model_name: str,
    engine: EngineClient,
    *,
    engine_config: EngineConfig | None = None,
    doors: Doors | None = None,
) -> ASGIApp:
    """Holds the connection to the engine from the app's start-up to its shutdown."""
    metrics = Metrics(model_name, engine, engine_config)
    app = _routes(tokenizer, model_name, engine, metrics)
    return RequestIdMiddleware(_guarded(app, doors or Doors()), metrics.on_response)


def _guarded(app: FastAPI, doors: Doors) -> ASGIApp:
    """Every reply has its CORS headers, also one of the guards'."""
    document = openapi_document(needs_key=doors.keys is not None)
    app.include_router(docs_router(document))
    guarded: ASGIApp = app if doors.keys is None else AuthMiddleware(app, doors.keys)
    if doors.origins:
        guarded = Cors(guarded, doors.origins)
    return RequestLogMiddleware(guarded, is_on=doors.logs_requests)


def _routes(
    tokenizer: Tokenizer, model_name: str, engine: EngineClient, metrics: Metrics
) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        connection = asyncio.create_task(engine.run())
        yield
        connection.cancel()
        with suppress(asyncio.CancelledError):
            await connection

    # not FastAPI's own pages: they load scripts from other hosts; nor its idea of the replies
    app = FastAPI(
        title="Continuo",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # a redirect would repeat the Host header that a client made up
    )
    completions = CompletionsRoute(tokenizer, model_name, engine, metrics)
    app.add_api_route("/v1/completions", completions.__call__, methods=["POST"])
    app.include_router(models_router(model_name, engine))
    app.include_router(health_router(engine))
    app.include_router(tokenize_router(model_name, tokenizer, engine))
    app.include_router(pages_router(metrics))
    add_error_handlers(app)
    return app
