"""B21, B50 to B52 and B56: clients that go away at any time, in any number, leave nothing behind."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable

import pytest

from tests.hostile.sending import BODY, COMPLETIONS, get, head, post
from tests.hostile.watch import Watch
from tests.hostile.wire import Responses, exchange, reset

_LONG = {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True, "stream": True}


def _connect(watch: Watch) -> socket.socket:
    return socket.create_connection(watch.address, timeout=10)


def _read_events(sock: socket.socket, num: int) -> None:
    """At most to the end."""
    data = b""
    while data.count(b"data: ") < num and not data.endswith(b"0\r\n\r\n"):
        part = sock.recv(65536)
        assert part, data[-300:]
        data += part


def _read_to_the_last_token(sock: socket.socket) -> None:
    """Byte by byte, so that [DONE] is not taken along."""
    data = b""
    while b'"finish_reason":"length"' not in data:
        data += sock.recv(1)


def _pause(sock: socket.socket, seconds: float) -> None:
    del sock
    time.sleep(seconds)


_BODY = post(_LONG)
_FULL = {
    "prompt": [i % 256 for i in range(2000)],
    "max_tokens": 40,
    "stream": True,
    "ignore_eos": True,
}
# What is sent, and what is done before leaving.
_EXPECTING = head(b"Content-Type: application/json", b"Content-Length: 50", b"Expect: 100-continue")
PHASES: dict[str, tuple[bytes, Callable[[socket.socket], None]]] = {
    "before-100-continue": (_EXPECTING, lambda sock: None),
    "before-the-headers-end": (head()[:60], lambda sock: _pause(sock, 0.02)),
    "during-the-body": (_BODY[:-20], lambda sock: _pause(sock, 0.02)),
    "at-once": (_BODY, lambda sock: None),
    "in-the-queue": (
        post({**_LONG, "n": 128, "max_tokens": 100}),
        lambda sock: _read_events(sock, 1),
    ),
    "in-the-prefill": (post({**_FULL, "cache_salt": "$"}), lambda sock: _pause(sock, 0.004)),
    "behind-the-prefill": (post(_FULL), lambda sock: _read_events(sock, 1)),
    "while-it-is-generated": (_BODY, lambda sock: _read_events(sock, 20)),
    "before-the-end-is-read": (post({**_LONG, "max_tokens": 30}), _read_to_the_last_token),
    "a-plain-reply": (post({**_LONG, "stream": False}), lambda sock: _pause(sock, 0.05)),
    "of-a-grammar": (
        post(
            {
                "prompt": "a",
                "max_tokens": 900,
                "stream": True,
                "structured_outputs": {"regex": "[a-z ]{3000}"},
            }
        ),
        lambda sock: _read_events(sock, 3),
    ),
}


@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("phase", PHASES)
def test_B50_whoever_leaves_is_gone_within_a_second(watch: Watch, phase: str, how: str) -> None:
    sent, do = PHASES[phase]
    sock = _connect(watch)
    sock.sendall(sent)
    do(sock)
    if how == "end":
        sock.close()
    else:
        reset(sock)
    watch.check()
    watch.check_idle()


def test_B51_a_client_that_sends_no_more_is_answered_or_let_go_but_not_held(watch: Watch) -> None:
    """Half a close is taken for a whole one: what was asked for ends."""
    for body in (_LONG, {**_LONG, "stream": False}, BODY):
        with _connect(watch) as sock:
            responses = Responses()
            sock.sendall(post(body))
            sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(65536):
                responses.feed(data)
            assert all(response.status == 200 for response in responses.found)
        watch.check()


@pytest.mark.parametrize("num_bytes", [0, 1, 40, 1 << 20])
def test_B51_what_is_cut_in_a_request_gets_no_answer_but_a_400(
    watch: Watch, num_bytes: int
) -> None:
    with _connect(watch) as sock:
        responses = Responses()
        sock.sendall(post({"prompt": "a" * 3_000_000})[: num_bytes or None][:num_bytes])
        sock.shutdown(socket.SHUT_WR)
        while data := sock.recv(65536):
            responses.feed(data)
        assert all(response.status == 400 for response in responses.found)
        assert responses.is_between
    watch.check()


def test_B52_a_storm_of_resets_leaves_nothing(watch: Watch) -> None:
    rng = random.Random(52)
    sent = (
        _BODY,
        post(_FULL),
        get(b"/v1/models"),
        post(b"{"),
        get(b"/metrics"),
        b"GET",
        _BODY[:300],
    )
    before = watch.control.num_answers
    for _ in range(1000):
        sock = _connect(watch)
        sock.send(rng.choice(sent))
        if rng.random() < 0.2:
            time.sleep(rng.random() / 100)
        reset(sock)
    deadline = time.monotonic() + 10  # for what has been accepted and not yet looked at
    while (
        exchange(watch.address, [get(b"/version")]).duration_s > 0.05
        and time.monotonic() < deadline
    ):
        pass
    watch.check()
    watch.check_idle()
    assert watch.control.num_answers > before


def test_B56_streams_that_end_while_their_clients_leave(watch: Watch) -> None:
    """The end and the abort meet in one step, now this one first and now that one."""
    for num_tokens in range(1, 25):
        with _connect(watch) as sock:
            sock.sendall(post({**_LONG, "n": 4, "max_tokens": num_tokens}))
            _read_events(sock, max(1, 4 * num_tokens - 4))
    watch.check()
    watch.check_idle()


def test_B21_a_live_streams_request_id_is_nobody_elses(watch: Watch) -> None:
    line = b"X-Request-Id: the-same"
    with _connect(watch) as sock:
        sock.sendall(post(_LONG, line))
        _read_events(sock, 2)
        other = exchange(watch.address, [post(BODY, line)]).responses[0]
        assert other.status == 200
        assert other.header("x-request-id") == "the-same"
        _read_events(sock, 20)
    found = exchange(watch.address, [get(COMPLETIONS + b"/the-same/stream")]).responses[0]
    assert found.status == 404
    watch.check()
