"""What the api holds for clients is counted for as long as it is held, and bounded."""

from __future__ import annotations

import json
import socket
from typing import Any, cast

import pytest

from server.api.admission.open_requests import OpenRequests
from server.api.app import Doors
from server.api.http.arrivals import REQUEST_BYTES, Arrival, Arrivals
from server.api.http.connections import Connections
from server.api.http.limits import HttpLimits
from server.api.http.slow_readers import Connection, SlowReaders
from server.api.reply.choice_stream import Delta
from server.api.reply.plain_choice import PlainChoice
from server.api.request.open_bytes import open_bytes
from server.sequence import SamplingParams
from tests.api.conftest import EOS, wait_until
from tests.api.raw_http import answers, get, next_answer, post, received
from tests.api.serving_app import served_app

_LONG = json.dumps({"prompt": "a", "max_tokens": 3, "user": "u" * 60_000}).encode()


def test_a_body_counts_until_its_request_is_answered_and_more_are_refused() -> None:
    """Behind an answer that is not due yet the others wait, whole."""
    limits = HttpLimits(max_request_bytes=4 * (len(_LONG) + 8192))
    with served_app(Doors(), Connections(limits)) as app:
        app.engine.script = lambda _: []  # it hangs
        with socket.create_connection(app.address, timeout=10) as first:
            first.sendall(4 * post(body=_LONG))
            wait_until(lambda: app.connections.num_request_bytes > 4 * len(_LONG))
            assert app.connections.num_unfinished_bytes == 0
            assert app.connections.num_request_bytes <= limits.max_request_bytes
            with socket.create_connection(app.address, timeout=10) as second:
                second.sendall(post(body=_LONG))
                (answer,) = answers(received(second))
                answer.error(503)
            assert app.connections.refused["memory"] == 1
            with socket.create_connection(app.address, timeout=10) as probe:
                probe.sendall(get(b"/health"))
                assert next_answer(probe).status == 200, "whatever else arrives"
        wait_until(lambda: app.connections.num_request_bytes == 0)
        wait_until(app.is_quiet)


@pytest.mark.parametrize("order", [("arrive", "release"), ("release", "arrive"), ("release",)])
def test_whatever_comes_first_an_arrival_is_given_back_once(order: tuple[str, ...]) -> None:
    arrivals = Arrivals()
    arrival = Arrival(arrivals, REQUEST_BYTES)
    for what in (*order, "release"):
        getattr(arrival, what)()
    assert arrivals.num_bytes == 0


def test_open_requests_are_given_back_once() -> None:
    requests = OpenRequests(max_bytes=100)
    leave = requests.enter(60)
    assert requests.has_room(40) and not requests.has_room(41)
    leave()
    leave()
    assert requests.num_bytes == 0


def test_a_request_without_room_is_refused_until_another_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OpenRequests.__init__, "__defaults__", (20_000,))
    with served_app(Doors()) as app, socket.create_connection(app.address, timeout=10) as first:
        app.engine.script = lambda _: []
        ask = json.dumps({"prompt": "a", "max_tokens": 200}).encode()
        first.sendall(post(body=ask))
        wait_until(lambda: app.engine.num_running == 1)
        with socket.create_connection(app.address, timeout=10) as second:
            second.sendall(post(b"Connection: close", body=ask))
            (answer,) = answers(received(second))
        assert answer.status == 503
        assert json.loads(answer.body)["error"]["code"] == "server_overloaded"
        assert answer.headers["retry-after"]
        first.close()
        wait_until(lambda: app.engine.num_running == 0)
        app.engine.script = lambda _: [97, EOS]
        with socket.create_connection(app.address, timeout=10) as third:
            third.sendall(post(body=ask))
            assert next_answer(third).status == 200


@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_a_plain_reply_is_no_larger_than_its_estimate(num_top: int) -> None:
    """With names of tokens as long as they are found in real vocabularies now and then."""
    choice, num_tokens = PlainChoice(), 300
    names = [f"bytes:\\xe2\\x80\\x{i:02x}" for i in range(num_top + 1)]
    top = dict.fromkeys(names, -12.34567890123456)
    for position in range(num_tokens):
        logprobs = {
            "tokens": names[:1],
            "token_logprobs": [-12.34567890123456],
            "top_logprobs": [top],
            "text_offset": [position * 7],
        }
        choice.add(Delta("some text", cast(Any, logprobs), None, None, position + 1))
    held = sum(lists.__sizeof__() for lists in choice._logprobs.values())
    params = SamplingParams(max_tokens=num_tokens, seed=0, logprobs=num_top)
    assert held <= open_bytes([[1]], 1, params, None, None)


class _Transport:
    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.is_cut = False

    def get_extra_info(self, _: str) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return self.num_bytes

    def abort(self) -> None:
        self.is_cut = True


def test_where_too_much_waits_who_has_most_is_cut() -> None:
    readers = SlowReaders(max_bytes=100)
    transports = [_Transport(num_bytes) for num_bytes in (30, 90, 20, 50)]
    sock = socket.socket()
    for transport in transports:
        connection = Connection(cast(Any, transport))
        connection._socket = sock
        readers.add(connection)
    assert readers.num_bytes == 190
    readers.sweep(0.0)
    assert [transport.is_cut for transport in transports] == [False, True, False, False]
    assert readers.num_bytes == readers.max_bytes
    assert readers.num_closed == 1
    readers.sweep(0.0)
    assert readers.num_closed == 1
    sock.close()
