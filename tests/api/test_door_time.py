"""How long a client may take, and what its slowness is not: our own business, a long answer, a busy loop."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from server.api.app import Doors
from server.api.http.connections import Connections
from server.api.http.limits import HttpLimits
from tests.api.conftest import wait_until
from tests.api.raw_http import (
    BODY,
    answers,
    chunk,
    exchange,
    get,
    next_answer,
    post,
    received,
    trickle,
)
from tests.api.serving_app import ServedApp, connected, served_app

_RECEIVE_S = 0.6
_LIMITS = HttpLimits(receive_s=_RECEIVE_S, silent_s=0.4, linger_s=0.2)
# Where a client must be in time: a busy machine may hold it up for longer than the times above.
_PATIENT_S = 2.0
_PATIENT = HttpLimits(receive_s=_PATIENT_S, silent_s=1.5, linger_s=0.2)


@pytest.fixture(scope="module")
def shared() -> Iterator[ServedApp]:
    with served_app(Doors(), Connections(_LIMITS)) as served:
        yield served


@pytest.fixture
def app(shared: ServedApp) -> Iterator[ServedApp]:
    yield shared
    wait_until(shared.is_quiet, timeout_s=2)


@pytest.fixture(scope="module")
def shared_patient() -> Iterator[ServedApp]:
    with served_app(Doors(), Connections(_PATIENT)) as served:
        yield served


@pytest.fixture
def patient(shared_patient: ServedApp) -> Iterator[ServedApp]:
    yield shared_patient
    wait_until(shared_patient.is_quiet, timeout_s=2)


_SLOW = {
    "line": b"GET /" + b"a" * 500,
    "headers": get(b"/version", b"X: " + b"a" * 500),
    "body": post(body=BODY + b" " * 500),
    "chunks": post(b"Transfer-Encoding: chunked", body=chunk(b" ") * 500),
    "one chunk": post(b"Transfer-Encoding: chunked", body=chunk(b" " * 500)),
}


@pytest.mark.parametrize("name", _SLOW)
def test_trickling_prolongs_nothing(app: ServedApp, name: str) -> None:
    sent = _SLOW[name]
    with connected(app) as connection:
        connection.sendall(sent[:-480])
        sent_s = trickle(connection, sent[-480:], _RECEIVE_S / 40)
        (answer,) = answers(received(connection))
    assert answer.error(408)["code"] is None
    assert sent_s >= _RECEIVE_S / 2
    assert app.connections.refused["deadline"] > 0


def test_a_request_that_just_makes_it_is_served(patient: ServedApp) -> None:
    with connected(patient) as connection:
        for piece in (post(b"Connection: close")[:-5], BODY[-5:]):
            connection.sendall(piece)
            time.sleep(_PATIENT_S / 3)
        (answer,) = answers(received(connection))
    assert answer.status == 200


def test_the_next_request_has_its_own_time(patient: ServedApp) -> None:
    with connected(patient) as connection:
        for _ in range(4):
            connection.sendall(get()[:20])
            time.sleep(_PATIENT_S / 2)
            connection.sendall(get()[20:])
            assert next_answer(connection).status == 200
            assert patient.connections.num_unfinished_bytes == 0


def test_between_two_requests_no_deadline_runs(patient: ServedApp) -> None:
    with connected(patient) as connection:
        for at in (0, 10, 0):
            connection.sendall(get()[:at])
            time.sleep(_PATIENT_S / 4)
            connection.sendall(get()[at:])
            assert next_answer(connection).status == 200
            time.sleep(1.2 * max(_PATIENT_S, _PATIENT.silent_s))


def test_expect_and_silence(app: ServedApp) -> None:
    with connected(app) as connection:
        connection.sendall(post(b"Expect: 100-continue", b"Content-Length: 10", body=b""))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        (answer,) = answers(received(connection))
    answer.error(408)


def test_expect_is_answered_once_and_not_to_http_1_0(app: ServedApp) -> None:
    with connected(app) as connection:
        connection.sendall(post(b"Expect: 100-continue", b"Connection: close")[: -len(BODY)])
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert received(connection).startswith(b"HTTP/1.1 200 ")
    sent = post(b"Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
    (answer,) = exchange(app.address, [sent[:-1], sent[-1:]])
    assert answer.status == 200


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"])
def test_who_says_nothing_is_cut_without_an_answer(app: ServedApp, sent: bytes) -> None:
    before = app.connections.refused["silence"]
    with connected(app) as connection:
        started_at = time.monotonic()
        connection.sendall(sent)
        assert received(connection) == b""
        assert time.monotonic() - started_at >= _LIMITS.silent_s - 0.05
    assert app.connections.refused["silence"] == before + 1


@pytest.mark.parametrize("behind", [b"", get()[:10]], ids=["nothing behind", "half a request"])
@pytest.mark.parametrize("num_pieces", [1, 2])
def test_a_long_answer_takes_its_time(app: ServedApp, behind: bytes, num_pieces: int) -> None:
    """Longer than any deadline. What is wrong with the bytes behind its request is told at its end."""
    script, app.engine.script = app.engine.script, lambda _: []  # no token, no end
    sent = post(body=b'{"prompt": "a", "stream": true}') + behind
    at = 0 if num_pieces == 1 else 50
    try:
        with connected(app) as connection:
            connection.sendall(sent[:at])
            time.sleep(_RECEIVE_S / 4)
            connection.sendall(sent[at:])
            wait_until(lambda: app.engine.num_running == 1)
            time.sleep(2 * _RECEIVE_S)
            assert app.engine.num_running == 1
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
        wait_until(lambda: app.engine.num_running == 0)
    finally:
        app.engine.script = script


def test_what_the_loop_was_too_busy_to_read_is_not_late(app: ServedApp) -> None:
    """The loop is held up past the deadline, while the rest of the request lies in the socket. It reads
    that only behind its timers when it was another socket's reader that held it up."""
    loop = next(iter(app.server.servers)).get_loop()
    ours, theirs = socket.socketpair()
    is_held = threading.Event()

    def hold() -> None:
        theirs.recv(1)
        is_held.set()
        time.sleep(1.5 * _RECEIVE_S)

    with ours, theirs, connected(app) as connection:
        loop.call_soon_threadsafe(loop.add_reader, theirs, hold)
        sent = post(b"Connection: close")
        connection.sendall(sent[:-5])
        wait_until(lambda: app.connections.num_unfinished_bytes > 0)
        ours.send(b"x")
        assert is_held.wait(10)
        connection.sendall(sent[-5:])
        (answer,) = answers(received(connection))
        loop.call_soon_threadsafe(loop.remove_reader, theirs)
        wait_until(app.is_quiet)
    assert answer.status == 200
