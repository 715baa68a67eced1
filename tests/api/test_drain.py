"""What is refused while the server stops, and what it waits for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.api.http.drain import Drain, DrainMiddleware


class App:
    """Answers when it is let; counts what reaches it."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.may_end = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_calls += 1
        await self.may_end.wait()
        if self.error is not None:
            raise self.error


async def call(app: DrainMiddleware, method: str, path: str) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("nobody reads")

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": []}
    await app(scope, receive, send)
    return sent


STREAM = "/v1/completions/0123/stream"


@pytest.mark.parametrize(
    ("method", "path", "is_counted"),
    [
        ("POST", "/v1/completions", True),
        ("GET", STREAM, True),
        ("POST", "/v1/completionsx", False),
        ("GET", "/v1/models", False),
        ("GET", "/health", False),
    ],
)
@pytest.mark.parametrize("error", [None, ValueError()])
def test_completions_and_resumed_streams_are_waited_for(
    method: str, path: str, is_counted: bool, error: Exception | None
) -> None:
    async def run() -> None:
        app, drain = App(), Drain()
        app.error = error
        calls = [
            asyncio.create_task(call(DrainMiddleware(app, drain), method, path)) for _ in range(3)
        ]
        await asyncio.sleep(0)
        assert drain.num_active == 3 * is_counted
        calls[0].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert drain.num_active == 2 * is_counted
        app.may_end.set()
        await asyncio.wait(calls)
        assert [done.exception() for done in calls[1:]] == [error, error]
        assert drain.num_active == 0

    asyncio.run(run())


def test_a_new_completion_is_refused_and_told_where_to_go() -> None:
    async def run() -> None:
        app, drain, refused = App(), Drain(), []
        drain.begin()
        start, body = await call(
            DrainMiddleware(app, drain, lambda: refused.append(1)), "POST", "/v1/completions"
        )
        assert start["status"] == 503
        headers = dict(start["headers"])
        assert headers[b"retry-after"] == b"5"
        assert headers[b"connection"] == b"close"
        assert b"x-should-retry" not in headers
        assert json.loads(body["body"])["error"]["code"] == "draining"
        assert (app.num_calls, drain.num_active, len(refused)) == (0, 0, 1)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "path"), [("GET", STREAM), ("GET", "/ready"), ("POST", "/tokenize")]
)
def test_everything_else_goes_on(method: str, path: str) -> None:
    async def run() -> None:
        app, drain = App(), Drain()
        app.may_end.set()
        drain.begin()
        assert await call(DrainMiddleware(app, drain), method, path) == []
        assert app.num_calls == 1

    asyncio.run(run())
