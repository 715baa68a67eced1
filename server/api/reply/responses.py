"""How a run of choices becomes HTTP: one JSON body, or a stream of events.

While it lasts, the connection is watched: a client that hangs up ends the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.generation import ClientGoneError, Generation
from server.api.http.http_protocol import body_writer
from server.api.http.request_log import record_of
from server.api.reply.event_stream import EventStream
from server.api.reply.json_parts import send_json
from server.api.reply.plain_collector import PlainCollector
from server.api.reply.run import Run
from server.api.reply.stream_errors import broken_stream_event, error_code
from server.api.request.planning import Plan

STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events otherwise
)


class CompletionResponse(Response):
    """Submits only when it is called, so that a run always has somebody who ends it."""

    def __init__(self, start: Callable[[], Awaitable[Run]], plan: Plan) -> None:
        super().__init__()
        self._start = start
        self._is_stream = bool(plan.request.stream)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        run = await self._start()
        record = record_of(scope)
        watcher = asyncio.create_task(_watch(receive, run.generation))
        try:
            await (_send_stream(run, scope, send) if self._is_stream else _send_plain(run, send))
            record.status = 200
        except ClientGoneError:
            pass  # nobody is there to be told
        finally:
            watcher.cancel()
            run.end()
            run.note(record)
            record.is_client_gone = isinstance(run.generation.error, ClientGoneError)


async def _watch(receive: Receive, generation: Generation) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    generation.fail(ClientGoneError())


async def _send_plain(run: Run, send: Send) -> None:
    is_complete = asyncio.Event()
    collector = PlainCollector(run, is_complete.set)
    await is_complete.wait()
    if collector.error is not None:
        raise collector.error
    parts = collector.reply.parts(run.usage())
    await send_json(parts, send, lambda: run.generation.error is not None)


async def _send_stream(run: Run, scope: Scope, send: Send) -> None:
    stream = EventStream(run, body_writer(scope))
    try:
        await stream.begun()
        await send({"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)})
        record = record_of(scope)
        record.status = 200
        stream.start()
        try:
            await stream.ended()
        except ClientGoneError:
            raise
        except Exception as error:
            record.code = error_code(error)
            event = broken_stream_event(error)
            await send({"type": "http.response.body", "body": event, "more_body": True})
    finally:
        stream.close()
    await send({"type": "http.response.body", "body": b""})
