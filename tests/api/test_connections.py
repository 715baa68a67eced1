"""More connections than there are places: who gives way, who is told, and that real clients are served."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from server.api.app import Doors
from server.api.http.connections import REASONS, Connections
from server.api.http.limits import HttpLimits, connection_limit
from tests.api.conftest import wait_until
from tests.api.raw_http import answers, get, next_answer, post, received
from tests.api.serving_app import ServedApp, served_app

_MAX = 8
_LIMITS = HttpLimits(max_connections=_MAX, evictable_s=0.3, linger_s=0.2, max_refusing=4)


@pytest.fixture
def limits() -> HttpLimits:
    return _LIMITS


@pytest.fixture
def app(limits: HttpLimits) -> Iterator[ServedApp]:
    with served_app(Doors(), Connections(limits)) as served:
        wait_until(served.is_quiet)
        yield served
        wait_until(served.is_quiet, timeout_s=3)


@contextlib.contextmanager
def clients(app: ServedApp, number: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(number):
            made.append(stack.enter_context(socket.create_connection(app.address, timeout=10)))
            made[-1].sendall(sent)
        yield made


def is_served(app: ServedApp) -> bool:
    with socket.create_connection(app.address, timeout=10) as connection:
        connection.sendall(get(b"/version", b"Connection: close"))
        return answers(received(connection))[0].status == 200


def test_the_longest_silent_one_gives_way(app: ServedApp) -> None:
    with clients(app, _MAX) as silent:
        wait_until(lambda: app.connections.num_open == _MAX)
        assert is_served(app)
        assert received(silent[0]) == b""
        silent[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[1].recv(1)


def test_a_crowd_of_silent_ones_keeps_nobody_out(app: ServedApp) -> None:
    with clients(app, 20 * _MAX):
        for _ in range(5):
            assert is_served(app)
        assert app.connections.num_open <= _MAX


def test_an_idle_one_is_one_that_has_been_answered(app: ServedApp) -> None:
    with clients(app, 1, get()) as (kept,):
        assert next_answer(kept).status == 200
        with clients(app, _MAX - 1, post(b"Content-Length: 100")):
            wait_until(lambda: app.connections.num_open == _MAX)
            assert is_served(app)
            assert received(kept) == b""


# longer than it takes to connect them all and to ask once more
@pytest.mark.parametrize("limits", [dataclasses.replace(_LIMITS, evictable_s=2.0)], ids=[""])
def test_who_takes_long_to_send_a_request_gives_way_to_others(app: ServedApp) -> None:
    with clients(app, _MAX, get()[:10]):
        wait_until(lambda: app.connections.num_unfinished_bytes == 10 * _MAX)
        with clients(app, 1, get()) as (refused,):
            (answer,) = answers(received(refused))
        assert answer.error(503)["type"] == "server_error"
        assert int(answer.headers["retry-after"]) > 0
        wait_until(lambda: is_served(app))
        assert app.connections.refused["evicted"] > 0


def test_who_is_served_gives_way_to_nobody(app: ServedApp) -> None:
    script, app.engine.script = app.engine.script, lambda _: [ord("x")]  # then it hangs
    try:
        with clients(app, _MAX, post(body=b'{"prompt": "a", "stream": true}')) as streams:
            wait_until(lambda: app.engine.num_running == _MAX)
            with clients(app, 3 * _MAX, get()) as others:
                said = [received(other) for other in others]
            assert {answers(each)[0].status for each in said if each} == {503}
            assert app.engine.num_running == _MAX
            assert app.connections.refused["connections"] == 3 * _MAX
            for stream in streams:
                assert stream.recv(65536).startswith(b"HTTP/1.1 200 ")
    finally:
        app.engine.script = script
    wait_until(lambda: app.engine.num_running == 0)


def test_the_page_shows_them(app: ServedApp) -> None:
    with clients(app, 2, get(b"/version", b"Expect: x")) as (one, other):
        received(one), received(other)
    page = httpx.get(f"{app.url}/metrics").text
    samples = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[0] != "#")

    def value(name: str, **labels: str) -> float:
        shown = "".join(f',{key}="{each}"' for key, each in labels.items())
        return float(samples[f'{name}{{engine="0",model_name="tests/tiny"{shown}}}'])

    assert value("continuo:connections") >= 1
    assert value("continuo:max_connections") == _MAX
    assert value("continuo:refused_requests_total", reason="expect") == 2
    for reason in REASONS:
        value("continuo:refused_requests_total", reason=reason)
    assert value("continuo:queue_limit_bytes", queue="requests") == 256 << 20


def test_unfinished_bodies_have_a_limit_together() -> None:
    limits = HttpLimits(max_request_bytes=300_000, linger_s=0.2)
    with served_app(Doors(), Connections(limits)) as app:
        half = post(b"Content-Length: 200000", body=b" " * 100_000)
        with clients(app, 2, half), clients(app, 1, half + b" " * 99_000) as (third,):
            (answer,) = answers(received(third))
            answer.error(503)
            assert app.connections.refused["memory"] == 1
        wait_until(app.is_quiet, timeout_s=2)


_OUT_OF_DESCRIPTORS = """
import resource, socket, sys, json
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
from server.api.app import Doors
from server.api.http.connections import Connections
from server.api.http.limits import HttpLimits
from tests.api.serving_app import served_app
with served_app(Doors(), Connections(HttpLimits(max_connections=1000))) as app:
    print(json.dumps(app.address), flush=True)
    sys.stdin.read()
"""


def test_without_descriptors_those_who_are_in_are_served() -> None:
    """Places for more than there are descriptors: not as it is set up, but other things use them, too."""
    process = subprocess.Popen(
        [sys.executable, "-c", _OUT_OF_DESCRIPTORS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process, contextlib.ExitStack() as stack:
        assert process.stdout is not None and process.stdin is not None
        address = tuple(json.loads(process.stdout.readline()))
        first = stack.enter_context(socket.create_connection(address, timeout=10))
        for _ in range(200):
            stack.enter_context(socket.create_connection(address, timeout=10))
        for _ in range(3):
            first.sendall(get())
            assert next_answer(first).status == 200
        stack.close()

        def is_served_again() -> bool:
            with socket.create_connection(address, timeout=10) as connection:
                with contextlib.suppress(OSError):
                    connection.sendall(get(b"/version", b"Connection: close"))
                return received(connection).startswith(b"HTTP/1.1 200 ")

        wait_until(is_served_again)
        process.stdin.close()
        assert process.wait(20) == 0


def test_the_limit_leaves_half_of_the_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, limit in ((1024, 512), (1 << 20, 8192), (resource.RLIM_INFINITY, 8192)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert connection_limit() == limit


def test_who_has_not_taken_its_answer_gives_way_last() -> None:
    connections = Connections(HttpLimits(max_connections=3))
    reading, done, other = _Client(num_unsent_bytes=1), _Client(), _Client()
    for client in (reading, done, other):
        assert connections.admit(client, 0.0)
    assert connections.admit(_Client(num_unsent_bytes=1), 0.0)
    assert (reading.is_evicted, done.is_evicted, other.is_evicted) == (False, True, False)
    for _ in range(2):
        assert connections.admit(_Client(num_unsent_bytes=1), 0.0)
    assert other.is_evicted
    assert reading.is_evicted  # there is nobody else: a crowd of such keeps nobody out


class _Client:
    def __init__(self, num_unsent_bytes: int = 0) -> None:
        self.num_unsent_bytes = num_unsent_bytes
        self.is_evicted = False

    def evict(self) -> None:
        self.is_evicted = True
