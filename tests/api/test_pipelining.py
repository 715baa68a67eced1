"""Several requests on one connection, sent ahead of the answers: whose time runs, whose bytes count, and that
what has been answered is heard to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.app import Doors
from server.api.http.connections import Connections
from server.api.http.limits import HttpLimits
from server.api.process import uvicorn_config
from tests.api.conftest import wait_until
from tests.api.raw_http import Answer, answers, get, next_answer, post, received
from tests.api.serving_app import ServedApp, connected, served_app

_LIMITS = HttpLimits(linger_s=0.2, evictable_s=0.2, max_connections=8)
_LARGE = bytes(200_000)  # more than the kernel holds for a client, below
_KEEP_ALIVE_S = 0.4


@pytest.fixture(scope="module")
def shared() -> Iterator[ServedApp]:
    with served_app(Doors(), Connections(_LIMITS)) as served:
        served.server.config.timeout_keep_alive = _KEEP_ALIVE_S  # type: ignore[assignment]
        yield served


@pytest.fixture
def app(shared: ServedApp) -> Iterator[ServedApp]:
    yield shared
    wait_until(shared.is_quiet, timeout_s=3)


def test_a_request_that_began_before_the_last_answer_is_not_cut_as_idle(app: ServedApp) -> None:
    """Its head was half there when the time ran out for which a connection may be kept idle."""
    script, app.engine.script = app.engine.script, lambda _: [ord("x")]  # then it hangs
    stream = post(body=b'{"prompt": "a", "stream": true}')
    try:
        with connected(app) as connection:
            connection.sendall(get() + stream[:30])
            assert next_answer(connection).status == 200
            connection.sendall(stream[30:])
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            with pytest.raises(TimeoutError):
                _read_for(connection, 3 * _KEEP_ALIVE_S)
            assert app.engine.num_running == 1
    finally:
        app.engine.script = script
    wait_until(lambda: app.engine.num_running == 0)


def _read_for(connection: socket.socket, seconds: float) -> None:
    """Raises TimeoutError, unless its end comes."""
    connection.settimeout(seconds)
    while connection.recv(1 << 16):
        pass


def test_who_sends_on_slowly_behind_an_answer_gives_way(app: ServedApp) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(_LIMITS.max_connections):
            connection = stack.enter_context(connected(app))
            connection.sendall(get() + post()[:30])
            assert next_answer(connection).status == 200
        time.sleep(_LIMITS.evictable_s)
        other = stack.enter_context(connected(app))
        other.sendall(get(b"/version", b"Connection: close"))
        assert answers(received(other))[0].status == 200


def test_only_bytes_that_wait_now_are_counted(app: ServedApp) -> None:
    """Five requests are always on their way, three megabytes in all."""
    sent = post(body=b'{"prompt": "a", "max_tokens": 1, "user": "%b"}' % (b"u" * 60_000))
    with connected(app) as connection:
        connection.sendall(5 * sent)
        reader = _Reader(connection)
        for _ in range(45):
            assert reader.next().status == 200
            connection.sendall(sent)
        for _ in range(5):
            assert reader.next().status == 200
        wait_until(lambda: app.connections.num_request_bytes == 0)


def test_what_waits_on_all_connections_has_a_limit() -> None:
    limits = HttpLimits(max_request_bytes=300_000, linger_s=0.2)
    with (
        served_app(Doors(), Connections(limits)) as app,
        contextlib.ExitStack() as stack,
    ):
        app.engine.script = lambda _: []  # no token, no end
        hanging = post(body=b'{"prompt": "a"}')
        waiting = post(body=b" " * 100_000)
        for _ in range(3):
            stack.enter_context(connected(app)).sendall(hanging + waiting)
        wait_until(lambda: app.connections.refused["memory"] == 1)
        assert app.connections.num_request_bytes >= 200_000
        stack.close()
        wait_until(app.is_quiet)


def test_a_length_with_thousands_of_zeros_is_no_fault_of_ours(
    app: ServedApp, caplog: pytest.LogCaptureFixture
) -> None:
    """Python makes no number of it, and says so with an exception."""
    with connected(app) as connection:
        connection.sendall(post(b"Content-Length: " + b"0" * 5000 + b"1"))
        answers(received(connection))[0].error(400)
    assert not caplog.records


def test_who_is_told_to_end_still_reads_all_answers() -> None:
    """More were sent than may wait, and the last answer is read slower than a connection lingers."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"%d" % len(_LARGE))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": _LARGE})

    with _served(app, Connections(_LIMITS)) as address, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(address)
        connection.sendall(get() * (_LIMITS.max_waiting_requests + 5))
        data = b""
        while len(data) <= _LIMITS.max_waiting_requests * len(_LARGE):
            data += connection.recv(1 << 16)
        time.sleep(3 * _LIMITS.linger_s)
        found = answers(data + received(connection))
    assert [answer.status for answer in found] == [200] * (_LIMITS.max_waiting_requests + 1)
    assert found[-1].headers["connection"] == "close"


def test_behind_an_answer_that_closes_nothing_is_begun() -> None:
    """The client sends on, so its connection lingers; what waited there has nobody to be answered to."""
    begun: list[str] = []
    may_answer = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(scope["path"])
        await asyncio.to_thread(may_answer.wait, 10)
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    connections = Connections(_LIMITS)
    with (
        _served(app, connections) as address,
        socket.create_connection(address, timeout=10) as connection,
    ):
        asked = [get(b"/%d" % i) for i in range(_LIMITS.max_waiting_requests + 2)]
        connection.sendall(b"".join(asked))
        wait_until(lambda: connections.refused["pipeline"] == 1)  # the last one was too much
        may_answer.set()
        (answer,) = answers(received(connection))
        assert answer.status == 200
        wait_until(lambda: connections.num_open == 0)
    assert begun == ["/0"]


@contextlib.contextmanager
def _served(app: ASGIApp, connections: Connections) -> Iterator[tuple[str, int]]:
    async def with_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await app(scope, receive, send)
            return
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})

    with socket.create_server(("127.0.0.1", 0)) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
        server = uvicorn.Server(uvicorn_config(with_lifespan, connections))
        thread = threading.Thread(target=lambda: server.run(sockets=[door]), daemon=True)
        thread.start()
        try:
            yield door.getsockname()
        finally:
            server.should_exit = True
            thread.join(20)


class _Reader:
    """Answers with a length, one after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""

    def next(self) -> Answer:
        while b"\r\n\r\n" not in self._data:
            self._more()
        head = self._data.partition(b"\r\n\r\n")[0]
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(self._data) < len(head) + 4 + length:
            self._more()
        one, self._data = (
            self._data[: len(head) + 4 + length],
            self._data[len(head) + 4 + length :],
        )
        (answer,) = answers(one)
        return answer

    def _more(self) -> None:
        data = self._connection.recv(1 << 16)
        assert data, "it was closed"
        self._data += data
