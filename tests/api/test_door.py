"""What is refused before a route sees it: by size, by syntax, by framing. Every answer has our shape, every
connection ends, nobody beside it notices, and nothing is left.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from server.api.app import Doors
from server.api.http.limits import HttpLimits
from tests.api.conftest import wait_until
from tests.api.raw_http import BODY, JSON, answers, chunk, exchange, get, post, received
from tests.api.serving_app import ServedApp, served_app

LIMITS = HttpLimits()
CHUNKED = b"Transfer-Encoding: chunked"


@pytest.fixture(scope="module")
def shared() -> Iterator[ServedApp]:
    with served_app(Doors()) as served:
        yield served


@pytest.fixture
def app(shared: ServedApp) -> Iterator[ServedApp]:
    """Another client's requests are answered all the while, and all is as before in the end."""
    stop, faults = threading.Event(), []

    def ask() -> None:
        with httpx.Client(base_url=shared.url, timeout=10) as client:
            while not stop.is_set():
                reply = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 26})
                if reply.json()["choices"][0]["text"] != "abcdefghijklmnopqrstuvwxyz":
                    faults.append(reply.text)

    neighbour = threading.Thread(target=ask)
    neighbour.start()
    yield shared
    stop.set()
    neighbour.join(20)
    assert not faults
    wait_until(shared.is_quiet, timeout_s=2)


def chunked(*chunks: bytes) -> bytes:
    return post(CHUNKED, body=b"".join(chunks) + b"0\r\n\r\n")


SIZES = {
    "line": (414, get(b"/" + b"a" * LIMITS.max_line_bytes)),
    "line without an end": (414, b"GET /" + b"a" * 100_000),
    "absolute line": (414, get(b"http://a/" + b"a" * LIMITS.max_line_bytes)),
    "header": (431, get(b"/version", b"X: " + b"a" * LIMITS.max_header_bytes)),
    "header without an end": (431, b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000),
    "name without an end": (431, b"GET / HTTP/1.1\r\n" + b"a" * 100_000),
    "101 headers": (431, get(b"/version", *[b"X: a"] * LIMITS.max_headers)),
    "10,000 headers": (431, get(b"/version", *[b"X: a"] * 10_000)),
    "announced body": (413, post(b"Content-Length: %d" % (LIMITS.max_body_bytes + 1), body=b"")),
    "sent body": (413, post(body=b" " * (LIMITS.max_body_bytes + 1))),
    "chunked body": (413, chunked(*[chunk(b" " * 65536)] * 65)),
    "one chunk": (413, chunked(b"7fffffff\r\n")),
    "tiny chunks": (400, chunked(*[b"1\r\n \r\n"] * 500_000)),
    "extensions": (400, chunked(*[chunk(b" " * 64, b";" + b"a" * 900)] * 100)),
    "endless extension": (400, post(CHUNKED, body=b"1;" + b"a" * 1_000_000)),
    "endless chunk size": (400, post(CHUNKED, body=b"0" * 1_000_000)),
    "trailers": (400, post(CHUNKED, body=b"0\r\n" + b"X: a\r\n" * 10_000 + b"\r\n")),
}


@pytest.mark.parametrize("name", SIZES)
def test_what_is_too_large_is_refused_by_its_own_status(app: ServedApp, name: str) -> None:
    status, sent = SIZES[name]
    (answer,) = exchange(app.address, [sent])
    answer.error(status)


SYNTAX = {
    "a length and chunks": post(b"Content-Length: 5", CHUNKED, body=chunk(b"hello")),
    "two lengths": post(b"Content-Length: 2", b"Content-Length: 2"),
    **{
        f"length {value!r}": post(b"Content-Length: " + value)
        for value in (b"+5", b"-5", b"1" + b"0" * 30, b"0x5", b"", b"5 5", b"5,5", b"5.0")
    },
    **{
        f"coding {value!r}": post(b"Transfer-Encoding: " + value, body=chunk(BODY) + b"0\r\n\r\n")
        for value in (b"gzip, chunked", b"chunked, gzip", b"identity", b"xchunked", b"chunked;a=b")
    },
    "chunked twice": post(CHUNKED, CHUNKED, body=chunk(BODY) + b"0\r\n\r\n"),
    "chunks in HTTP/1.0": b"POST /tokenize HTTP/1.0\r\n%b\r\n\r\n5\r\nhello\r\n0\r\n\r\n" % CHUNKED,
    **{
        f"chunk {body!r}": post(CHUNKED, body=body + b"0\r\n\r\n")
        for body in (
            b"5\r\nhello world\r\n", b"5\nhello\n", b"5\r\nhello\n", b"-5\r\nhello\r\n", b"0x5\r\nhello\r\n",
            b"5 \r\nhello\r\n", b" 5\r\nhello\r\n", b"\r\n", b"x\r\n", b"f" * 17 + b"\r\n",
            b"5;\0\r\nhello\r\n", b"5;a\rb\r\nhello\r\n",
        )
    },
    "a bad trailer": post(CHUNKED, body=b"0\r\nX Y: a\r\n\r\n"),
    "line feeds only": get().replace(b"\r\n", b"\n"),
    "a header's line feed": get(b"/version", b"X: a\nY: b"),
    "a bare CR": get(b"/version", b"X: a\rb"),
    "a folded header": get(b"/version", b"X: a\r\n b"),
    "a folded first header": b"GET /version HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n",
    "NUL in a value": get(b"/version", b"X: a\0b"),
    "NUL in a name": get(b"/version", b"X\0: a"),
    "a blank before the colon": get(b"/version", b"X : a"),
    "no name": get(b"/version", b": a"),
    "no colon": get(b"/version", b"X"),
    "no host": get(host=None),
    "two hosts": get(b"/version", b"Host: a"),
    **{
        f"host {host!r}": get(host=host)
        for host in (b"a b", b"a/b", b"u@a", b"a:b", b"a:1:2", b"[::1", b"a,b", b"[x]", b"a#b")
    },
    "HTTP/0.9": b"GET /version\r\n\r\n",
    "HTTP/2.0": b"GET /version HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "RTSP": b"DESCRIBE /version RTSP/1.0\r\nHost: a\r\n\r\n",
    "two blanks": b"GET  /version HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tab": b"GET\t/version HTTP/1.1\r\nHost: a\r\n\r\n",
    "a fragment": get(b"/version#a"),
    "a user in the target": get(b"http://u@a/version"),
    "another scheme": get(b"ftp://a/version"),
    "a target with no path": get(b"http://a"),
    "an authority": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target without a slash": get(b"version"),
    "UTF-8 in the target": get("/é".encode()),
    "an unknown method": get().replace(b"GET", b"BREW"),
    "a method of 10 KB": get().replace(b"GET", b"G" * 10_240),
    "an endless method": b"A" * 100_000,
    "a method in lower case": get().replace(b"GET", b"get"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
}  # fmt: skip


@pytest.mark.parametrize("name", SYNTAX)
def test_what_is_not_http_is_a_400_and_the_end(app: ServedApp, name: str) -> None:
    (answer,) = exchange(app.address, [SYNTAX[name] + get()])
    assert answer.error(400)["type"] == "invalid_request_error"


def test_every_split_of_a_head_is_refused_alike(app: ServedApp) -> None:
    sent = get(b"/version", b"X : a")
    for at in range(1, len(sent), 7):
        with socket.create_connection(app.address, timeout=10) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(sent[:at])
            wait_until(lambda: app.connections.num_unfinished_bytes > 0 or _has_answer(connection))
            connection.sendall(sent[at:])
            (answer,) = answers(received(connection))
        answer.error(400)


def _has_answer(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 0)[0])


def padded_to(num_bytes: int) -> bytes:
    """In a field that is ignored."""
    start, end = BODY[:-1] + b', "user": "', b'"}'
    return start + b"a" * (num_bytes - len(start) - len(end)) + end


TAKEN = {
    "100 headers": get(b"/version", *[b"X: a"] * (LIMITS.max_headers - 2), b"Connection: close"),
    "a line at the limit": get(
        b"/version?" + b"a" * (LIMITS.max_line_bytes - len(b"GET /version? HTTP/1.1")),
        b"Connection: close",
    ),
    "headers at the limit": get(
        b"/version",
        b"Connection: close",
        b"X: "
        + b"a" * (LIMITS.max_header_bytes - len(b"Host: a\r\nConnection: close\r\nX: \r\n\r\n")),
    ),
    "a body at the limit": post(b"Connection: close", body=padded_to(LIMITS.max_body_bytes)),
    "chunks": post(
        CHUNKED,
        b"Connection: close",
        body=b"".join([chunk(BODY[i : i + 1], b";a=b") for i in range(len(BODY))])
        + b"0\r\nX: a\r\n\r\n",
    ),
    "empty lines in front": b"\r\n\r\n" + get(b"/version", b"Connection: close"),
    "HTTP/1.0 without a host": b"GET /version HTTP/1.0\r\n\r\n",
    "an absolute target": get(b"http://a/version", b"Connection: close"),
    "no coding": post(b"Connection: close", b"Content-Encoding: identity"),
    "a range": get(b"/version", b"Range: bytes=" + b"0-0," * 3000 + b"1-1", b"Connection: close"),
    "an upgrade with a body": post(b"Connection: Upgrade", b"Upgrade: h2c"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_right_is_taken_whole_and_in_pieces(app: ServedApp, name: str) -> None:
    sent = TAKEN[name]
    cuts = sorted(random.Random(name).sample(range(1, len(sent)), 5))
    pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    for parts in ([sent], pieces):
        (answer,) = exchange(app.address, parts)
        assert answer.status == 200, answer.body


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"Content-Encoding: gzip", 415),
        (b"Content-Encoding: identity, gzip", 415),
        (b"Content-Type: text/plain", 415),
        (b"Expect: 200-ok", 417),
    ],
)
def test_other_refusals(app: ServedApp, line: bytes, status: int) -> None:
    sent = post(line, b"Connection: close").replace(JSON, b"" if b"Type" in line else JSON)
    (answer,) = exchange(app.address, [sent])
    answer.error(status)


def test_a_body_has_a_type(app: ServedApp) -> None:
    (answer,) = exchange(app.address, [post(b"Connection: close").replace(JSON, b"")])
    answer.error(415)


@pytest.mark.parametrize("path", [b"/nothing", b"/v1/models", b"/health", b"/v1/completions"])
def test_no_connection_lives_on_behind_half_a_body(app: ServedApp, path: bytes) -> None:
    """Whatever the route and the status: the rest of the body would be read as the next request."""
    half = post(b"Content-Length: 1000", target=path, body=b"x" * 10)
    if path == b"/v1/completions":  # which would wait for its body, were it of the right type
        half = half.replace(JSON, b"")
    (answer,) = exchange(app.address, [half])
    assert answer.status in (404, 405, 415)
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("target", [b"/v1/completions", b"/nothing"])
def test_who_still_sends_reads_why_it_is_refused(app: ServedApp, target: bytes) -> None:
    """A connection that is just closed is reset, and with many systems the answer is lost."""
    head = post(b"Content-Length: %d" % (1 << 30), target=target, body=b"")
    with socket.create_connection(app.address, timeout=10) as connection:
        connection.sendall(head)
        for _ in range(8):
            connection.sendall(b" " * 65536)
        data = b""
        while part := connection.recv(1 << 16):  # and no reset
            data += part
    (answer,) = answers(data)
    assert answer.status in (413, 404)


def test_who_never_stops_sending_is_cut(app: ServedApp) -> None:
    head = post(b"Content-Length: %d" % (1 << 30), body=b"")
    with socket.create_connection(app.address, timeout=10) as connection:
        connection.sendall(head)
        num_sent = 0
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(16_384):
                num_sent += connection.send(b" " * 65536)
    assert num_sent < 1 << 28


def test_the_answers_in_front_of_nonsense_come_first(app: ServedApp) -> None:
    asked = [get(b"/version", b"X-Request-Id: n%d" % i) for i in range(3)]
    *good, last = exchange(app.address, [b"".join(asked) + b"nonsense\r\n\r\n"])
    assert [answer.headers["x-request-id"] for answer in good] == ["n0", "n1", "n2"]
    last.error(400)


@pytest.mark.parametrize("num_requests", [17, 18, 1000])
def test_pipelined_requests_are_answered_in_order_up_to_a_number(
    app: ServedApp, num_requests: int
) -> None:
    asked = [get(b"/version", b"X-Request-Id: n%d" % i) for i in range(num_requests - 1)]
    asked.append(get(b"/version", b"Connection: close", b"X-Request-Id: last"))
    found = exchange(app.address, [b"".join(asked)])
    names = [answer.headers["x-request-id"] for answer in found]
    assert names[:16] == [f"n{i}" for i in range(16)]
    assert found[-1].headers["connection"] == "close"
    assert min(num_requests, LIMITS.max_waiting_requests) <= len(found) <= 100


def test_pipelined_bodies_are_bounded_and_a_client_that_leaves_is_seen(app: ServedApp) -> None:
    script = app.engine.script
    hanging = [ord("h")]
    app.engine.script = lambda asked: hanging if asked.prompt_ids == hanging else script(asked)
    before = app.connections.refused["pipeline"]
    with socket.create_connection(app.address, timeout=10) as connection:
        connection.sendall(post(body=b'{"prompt": "h"}'))
        large = post(body=b" " * (LIMITS.max_body_bytes - 1))
        sender = threading.Thread(target=_send, args=(connection, large * 8), daemon=True)
        sender.start()
        most, deadline = 0, time.monotonic() + 10
        while app.connections.refused["pipeline"] == before:
            most = max(most, app.connections.num_unfinished_bytes)
            assert time.monotonic() < deadline, "it was not refused"
        assert most <= 2 * LIMITS.max_waiting_bytes
    sender.join(10)
    wait_until(lambda: len(app.server.server_state.tasks) <= 1)  # the neighbour's
    app.engine.script = script


def _send(connection: socket.socket, data: bytes) -> None:
    try:
        connection.sendall(data)
    except OSError:
        return


@pytest.mark.parametrize("name", ["tiny chunks", "10,000 headers", "extensions", "trailers"])
def test_a_bomb_costs_no_time(shared: ServedApp, name: str) -> None:
    """Of the one thread that serves: this process's CPU while it is sent, sending included. At its cheapest
    of three, as the process does other things, too."""
    _, sent = SIZES[name]
    costs_s = []
    for _ in range(3):
        before = time.process_time()
        exchange(shared.address, [sent])
        costs_s.append(time.process_time() - before)
        wait_until(shared.is_quiet, timeout_s=2)
    assert min(costs_s) < 0.25, costs_s


def test_trailers_become_no_headers(app: ServedApp) -> None:
    body = chunk(BODY) + b"0\r\nX-Request-Id: from-a-trailer\r\n\r\n"
    (answer,) = exchange(app.address, [post(CHUNKED, b"Connection: close", body=body)])
    assert answer.status == 200
    assert answer.headers["x-request-id"] != "from-a-trailer"


def test_a_named_request_keeps_its_name_when_it_is_refused(app: ServedApp) -> None:
    (answer,) = exchange(app.address, [get(b"/version", b"X-Request-Id: mine", b"Expect: x")])
    answer.error(417)
    assert answer.headers["x-request-id"] == "mine"
