"""How a run of choices becomes HTTP: one JSON body, or a stream of events.

While it lasts, the connection is watched: a client that hangs up ends the run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.choice_stream import Delta
from server.api.errors import error_of
from server.api.generation import ClientGoneError, Generation
from server.api.planning import Plan
from server.api.replies import completion_json, join_deltas
from server.api.run import Run
from server.api.sse import DONE, PING, EventWriter, error_event
from server.errors import EngineGoneError

_log = logging.getLogger(__name__)

PING_AFTER_S = 15.0  # of silence; proxies cut connections that are silent for longer
_STREAM_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx would collect events otherwise
    ],
}


class CompletionResponse(Response):
    """Submits only when it is called, so that a run always has somebody who ends it."""

    def __init__(self, start: Callable[[], Awaitable[Run]], plan: Plan) -> None:
        super().__init__()
        self._start = start
        self._is_stream = bool(plan.request.stream)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        run = await self._start()
        watcher = asyncio.create_task(_watch(receive, run.generation))
        try:
            await (_send_stream(run, send) if self._is_stream else _send_plain(run, send))
        except ClientGoneError:
            pass  # nobody is there to be told
        finally:
            watcher.cancel()
            run.end()


async def _watch(receive: Receive, generation: Generation) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    generation.fail(ClientGoneError())


async def _send_plain(run: Run, send: Send) -> None:
    collected: list[list[Delta]] = [[] for _ in run.choices]
    while not run.is_done:
        for index, delta in await run.next():
            collected[index].append(delta)
    choices = [join_deltas(index, deltas) for index, deltas in enumerate(collected)]
    body = completion_json(run.head, choices, run.usage())
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_stream(run: Run, send: Send) -> None:
    events = _Events(run)
    try:
        while chunk := await events.next():
            if not events.has_started:
                events.has_started = True
                await send(_STREAM_START)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except ClientGoneError:
        raise
    except Exception as error:
        if (
            not events.has_started
        ):  # nothing is sent before there is something: errors have a status
            raise
        if not isinstance(error, EngineGoneError):
            _log.error("a stream failed", exc_info=error)
        event = error_event(error_of(error))
        await send({"type": "http.response.body", "body": event, "more_body": True})
    finally:
        events.close()
    await send({"type": "http.response.body", "body": b""})


class _Events:
    """A run's stream as bytes. A plain loop: a chain of generators would cost as much as the token."""

    def __init__(self, run: Run) -> None:
        options = run.plan.options
        self._run = run
        self._has_usage = bool(options.include_usage)
        self._is_continuous = bool(options.continuous_usage_stats)
        self._writer = EventWriter(
            run.head, len(run.choices), shows_usage=self._has_usage or self._is_continuous
        )
        self._silence = _Silence(run.generation)
        self._has_ended = False
        self.has_started = False

    async def next(self) -> bytes:
        """One event per piece, several only where several were waiting; at last the end; then b""."""
        while not self._run.is_done:
            deltas = await self._run.next()
            if deltas:
                self._silence.has_ended()
                return b"".join([self._event(index, delta) for index, delta in deltas])
            if self._silence.is_over_due():
                self._silence.has_ended()
                return PING
        if self._has_ended:
            return b""
        self._has_ended = True
        return (self._writer.usage_event(self._run.usage()) if self._has_usage else b"") + DONE

    def _event(self, index: int, delta: Delta) -> bytes:
        usage = self._run.usage_with(index, delta) if self._is_continuous else None
        return self._writer.event(index, delta, usage)

    def close(self) -> None:
        self._silence.stop()


class _Silence:
    """Nudges the run once a stream was silent for PING_AFTER_S. One timer, moved only when it is
    due: moving it for every token would cost more than the token."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._timer = self._loop.call_at(self._since + PING_AFTER_S, self._on_timer)

    def has_ended(self) -> None:
        self._since = self._loop.time()

    def is_over_due(self) -> bool:
        return self._loop.time() >= self._since + PING_AFTER_S

    def stop(self) -> None:
        self._timer.cancel()

    def _on_timer(self) -> None:
        if self.is_over_due():
            self._generation.nudge()
            self._timer = self._loop.call_later(PING_AFTER_S, self._on_timer)
        else:
            self._timer = self._loop.call_at(self._since + PING_AFTER_S, self._on_timer)
