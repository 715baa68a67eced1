"""The application: routes and error shapes put together. Everything arrives as an argument."""

from __future__ import annotations

import asyncio
import time
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
from server.api.http.connections import Connections
from server.api.http.cors import Cors
from server.api.http.drain import Drain, DrainMiddleware
from server.api.http.errors import add_error_handlers
from server.api.http.hosts import AllowedHosts, HostMiddleware
from server.api.http.request_id import RequestIdMiddleware
from server.api.http.request_log import RequestLogMiddleware
from server.api.kept.kept_runs import KeptRuns
from server.api.metrics.metrics import Metrics, Queue
from server.api.routes.completions import CompletionsRoute
from server.api.routes.health import Progress, health_router
from server.api.routes.models import models_router
from server.api.routes.pages import pages_router
from server.api.routes.resume import resume_router
from server.api.routes.tokenize import tokenize_router
from server.api_keys import KeyFile
from server.config import EngineConfig
from server.tokenizer import Tokenizer

_SWEEP_S = 1.0  # how late a kept run may be forgotten
# Measured: 2.2 KB of objects for a stream, 2.6 KB for a reply, 1 KB for the entry of an Idempotency-Key.
_KEPT_BYTES = 4096


@dataclass(frozen=True)
class Doors:
    """Who may come in, and what is written down of it."""

    keys: KeyFile | None = None  # None: no key is needed
    hosts: AllowedHosts | None = None  # None: any
    origins: tuple[str, ...] = ()
    logs_requests: bool = False


def create_app(
    tokenizer: Tokenizer,
    model_name: str,
    engine: EngineClient,
    *,
    engine_config: EngineConfig | None = None,
    doors: Doors | None = None,
    drain: Drain | None = None,
    connections: Connections | None = None,
    progress: Progress | None = None,
    resume_bytes: int = 64 << 20,
) -> ASGIApp:
    """Holds the connection to the engine from the app's start-up to its shutdown. `resume_bytes`: for
    streams and replies that can be read again."""
    metrics = Metrics(model_name, engine, engine_config)
    kept = KeptRuns(resume_bytes, bytes_each=_KEPT_BYTES)
    metrics.watch(Queue("kept_runs", lambda: kept.num_bytes, kept.max_bytes))
    metrics.watch_streams(lambda: kept.num_streams)
    if progress is not None:
        metrics.watch_progress(progress.age_s)
    drain, connections = drain or Drain(), connections or Connections()
    metrics.watch_connections(connections)
    app = _app(engine, kept)
    completions = CompletionsRoute(tokenizer, model_name, engine, metrics, kept)
    app.add_api_route("/v1/completions", completions.__call__, methods=["POST"])
    app.include_router(resume_router(kept, metrics))
    app.include_router(models_router(model_name, engine))
    app.include_router(health_router(engine, progress, drain))
    app.include_router(tokenize_router(model_name, tokenizer, engine))
    app.include_router(pages_router(metrics))
    add_error_handlers(app)
    drained = DrainMiddleware(app, drain, lambda: metrics.on_rejection("draining"))
    guarded = _guarded(app, drained, doors or Doors(), connections)
    return RequestIdMiddleware(guarded, metrics.on_response)


def _guarded(app: FastAPI, inner: ASGIApp, doors: Doors, connections: Connections) -> ASGIApp:
    """Every reply has its CORS headers, also one of the guards'."""
    document = openapi_document(needs_key=doors.keys is not None)
    app.include_router(docs_router(document))
    guarded = inner if doors.keys is None else AuthMiddleware(inner, doors.keys)
    if doors.origins:
        guarded = Cors(guarded, doors.origins)
    if doors.hosts is not None:
        guarded = HostMiddleware(guarded, doors.hosts, connections)
    return RequestLogMiddleware(guarded, is_on=doors.logs_requests)


def _app(engine: EngineClient, kept: KeptRuns) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(engine.run()), asyncio.create_task(_sweep(kept))]
        yield
        kept.clear()
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # not FastAPI's own pages: they load scripts from other hosts; nor its idea of the replies
    return FastAPI(
        title="Continuo",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # a redirect would repeat the Host header that a client made up
    )


async def _sweep(kept: KeptRuns) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        kept.sweep(time.monotonic())
