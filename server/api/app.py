"""The application: routes and error shapes put together. Everything arrives as an argument."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.types import ASGIApp

from server import __version__
from server.api.admission.admission import Admission
from server.api.admission.key_limits import KeyLimiter
from server.api.docs.docs import docs_router
from server.api.docs.openapi import openapi_document
from server.api.engine_client import EngineClient
from server.api.http.auth import AuthMiddleware
from server.api.http.connections import Connections
from server.api.http.cors import Cors
from server.api.http.drain import Drain, DrainMiddleware
from server.api.http.errors import add_error_handlers
from server.api.http.hosts import AllowedHosts, HostMiddleware
from server.api.http.limit_headers import LimitHeaders
from server.api.http.request_id import RequestIdMiddleware
from server.api.http.request_log import RequestLogMiddleware
from server.api.http.slow_readers import STATE, SlowReaders
from server.api.kept.idempotency import Idempotency
from server.api.kept.kept_runs import KeptRuns
from server.api.memory_budget import (
    KEPT_BYTES,
    watch_counts,
    watch_door,
    watch_engine,
    watch_handed_over,
    watch_kept,
)
from server.api.metrics.metrics import Metrics
from server.api.routes.admission_door import AdmissionDoor
from server.api.routes.completions import CompletionsRoute
from server.api.routes.health import Progress, health_router
from server.api.routes.models import models_router
from server.api.routes.pages import pages_router
from server.api.routes.resume import resume_router
from server.api.routes.tokenize import tokenize_router
from server.api.workers.all_counts import AllCounts
from server.api.workers.handover import Handover, UnreachableMiddleware
from server.api.workers.shared_admission import shared_admission
from server.api.workers.worker import Worker
from server.api_keys import KeyFile
from server.config import EngineConfig
from server.tokenizer import Tokenizer

_SWEEP_S = 1.0  # how late a kept run may be forgotten


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
    max_queue_s: float = 10.0,
    on_budget: Callable[[list[str]], None] = lambda _: None,
    worker: Worker | None = None,
) -> ASGIApp:
    """Holds the connection to the engine from the app's start-up to its shutdown. `resume_bytes`: for
    streams and replies that can be read again. `max_queue_s`: how long a request may wait for its turn.
    `on_budget` is given the table of what the process may hold. `worker`: which of several it is; then a
    Handover is returned."""
    metrics = Metrics(model_name, engine, engine_config)
    kept = KeptRuns(resume_bytes, bytes_each=KEPT_BYTES)
    if worker is not None:
        kept.new_stream_id = worker.new_stream_id
    metrics.watch_streams(lambda: kept.num_streams)
    slow_readers = SlowReaders()
    metrics.watch_slow_readers(lambda: slow_readers.num_closed)
    text = "Tasks of the event loop, that of this page among them."
    metrics.watch_gauge("tasks", text, lambda: len(asyncio.all_tasks()))
    if progress is not None:
        metrics.watch_progress(progress.age_s)
    drain, doors = drain or Drain(), doors or Doors()
    connections = Connections() if connections is None else connections
    metrics.watch_connections(connections)
    admission = _admission(engine, metrics, doors.keys, max_queue_s, worker)
    app = _app(engine, kept, slow_readers)
    idempotency = Idempotency()
    completions = CompletionsRoute(
        tokenizer, model_name, engine, metrics, kept, admission, idempotency
    )
    watch_door(metrics, connections, slow_readers)
    watch_engine(metrics, engine, admission.open_requests)
    watch_kept(metrics, kept)
    if worker is not None:
        watch_handed_over(metrics, connections)
    watch_counts(metrics, idempotency, connections, kept, admission.open_requests)
    on_budget(metrics.budget.lines())
    app.add_api_route("/v1/completions", completions.__call__, methods=["POST"])
    app.include_router(resume_router(kept, metrics))
    app.include_router(models_router(model_name, engine))
    app.include_router(health_router(engine, progress, drain, admission.is_overloaded))
    app.include_router(tokenize_router(model_name, tokenizer, engine))
    counts = None if worker is None else AllCounts(worker, metrics)
    app.include_router(pages_router(metrics.page if counts is None else counts.page))
    add_error_handlers(app)
    door = AdmissionDoor(app, admission)
    drained = DrainMiddleware(door, drain, lambda: metrics.on_rejection("draining"))
    inner = drained if worker is None else UnreachableMiddleware(drained)
    guarded = _guarded(app, inner, doors, connections)
    own = RequestIdMiddleware(guarded, metrics.on_response)
    if worker is None or counts is None:
        return own
    return Handover(own, worker, drain, doors.keys, counts.own)


def _guarded(app: FastAPI, inner: ASGIApp, doors: Doors, connections: Connections) -> ASGIApp:
    """Every reply has its CORS headers, also one of the guards'."""
    document = openapi_document(needs_key=doors.keys is not None)
    app.include_router(docs_router(document))
    guarded = inner if doors.keys is None else AuthMiddleware(LimitHeaders(inner), doors.keys)
    if doors.origins:
        guarded = Cors(guarded, doors.origins)
    if doors.hosts is not None:
        guarded = HostMiddleware(guarded, doors.hosts, connections)
    return RequestLogMiddleware(guarded, is_on=doors.logs_requests)


def _admission(
    engine: EngineClient,
    metrics: Metrics,
    keys: KeyFile | None,
    max_queue_s: float,
    worker: Worker | None,
) -> Admission:
    if worker is None:
        limiter = KeyLimiter() if keys is None else KeyLimiter(keys.limits_of)
        admission = Admission(max_queue_s, limiter, on_rejection=metrics.on_rejection)
    else:
        admission = shared_admission(worker, keys, max_queue_s, metrics.on_rejection)
    engine.watch(admission)
    room = admission.room
    for name, text, value in (
        ("waiting_sequences", "Let in, in no step yet.", lambda: room.total.num_sequences),
        ("waiting_sequences_limit", "Most that may wait.", lambda: room.max_sequences),
        ("waiting_tokens", "Prompts and max_tokens of those.", lambda: room.total.num_tokens),
        ("waiting_prompt_tokens", "Prompts of those.", lambda: room.total.num_prompt_tokens),
        ("waiting_prompt_tokens_limit", "Most that may wait.", lambda: room.max_prompt_tokens),
        ("estimated_wait_seconds", "Of a new request.", lambda: admission.estimate("").wait_s),
        ("estimated_wait_limit_seconds", "One that is longer is refused.", lambda: max_queue_s),
    ):
        metrics.watch_gauge(name, text, value)
    return admission


def _app(engine: EngineClient, kept: KeptRuns, slow_readers: SlowReaders) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, SlowReaders]]:
        tasks = [asyncio.create_task(engine.run()), asyncio.create_task(_sweep(kept, slow_readers))]
        yield {STATE: slow_readers}
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


async def _sweep(kept: KeptRuns, slow_readers: SlowReaders) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        now_s = time.monotonic()
        kept.sweep(now_s)
        slow_readers.sweep(now_s)
