"""A client that goes away takes its sequences with it; nothing is left behind."""

from __future__ import annotations

import socket
import struct
from typing import Any

import httpx
import msgspec
import pytest

from tests.api.conftest import wait_until
from tests.api.fake_engine import FakeEngine


def connect(base_url: str, **fields: Any) -> socket.socket:
    """A raw client that sends a request and reads nothing by itself."""
    url = httpx.URL(base_url)
    assert url.port is not None
    sock = socket.create_connection((url.host, url.port), timeout=10)
    body = msgspec.json.encode({"prompt": "Hi", **fields})
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return sock


def receive_until(sock: socket.socket, wanted: bytes) -> None:
    """The head and the first event may come apart."""
    received = b""
    while wanted not in received:
        part = sock.recv(1 << 16)
        assert part, received
        received += part


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("hang_up", [socket.socket.close, reset])
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("has_begun", [False, True])
def test_an_abort_reaches_the_engine(
    base_url: str, engine: FakeEngine, is_stream: bool, has_begun: bool, hang_up: Any
) -> None:
    engine.script = lambda _: [97, 98] if has_begun else []  # and then it computes for ever
    sock = connect(base_url, stream=is_stream, n=2)
    wait_until(lambda: engine.num_running == 2)
    if has_begun and is_stream:
        receive_until(sock, b"data: ")
    assert engine.aborted == []
    hang_up(sock)
    wait_until(lambda: engine.num_running == 0)
    assert sorted(engine.aborted) == [request.seq_id for request in engine.submitted]


def test_a_choice_that_has_ended_is_not_aborted(base_url: str, engine: FakeEngine) -> None:
    engine.script = lambda request: [97] if request.choice == 0 else []
    sock = connect(base_url, n=2, max_tokens=1)
    wait_until(lambda: engine.num_running == 1)
    sock.close()
    wait_until(lambda: engine.num_running == 0)
    assert engine.aborted == [engine.submitted[1].seq_id]


def test_a_client_that_leaves_before_its_body_is_complete_costs_nothing(
    base_url: str, client: httpx.Client, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    url = httpx.URL(base_url)
    assert url.port is not None
    for _ in range(3):
        with socket.create_connection((url.host, url.port)) as sock:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n"
            head += b"Content-Type: application/json\r\n\r\n{"
            sock.sendall(head)
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200
    assert len(engine.submitted) == 1
    assert caplog.records == []  # no fault of ours, so no traceback


def test_a_finished_request_aborts_nothing(client: httpx.Client, engine: FakeEngine) -> None:
    for is_stream in (False, True):
        client.post("/v1/completions", json={"prompt": "a", "stream": is_stream})
    assert client.get("/health").status_code == 200
    assert engine.aborted == []


def test_a_slow_reader_holds_up_nobody_and_gets_all(
    base_url: str, client: httpx.Client, engine: FakeEngine
) -> None:
    """It does not stay in the engine meanwhile, and what is there when it reads on comes joined."""
    engine.script = lambda request: [97 + request.choice % 26] * 200
    fields = {"max_tokens": 200, "n": 60, "logprobs": 20, "stream": True}
    slow = connect(base_url, **fields)
    received = bytearray(slow.recv(1 << 12))
    wait_until(lambda: engine.num_running == 0)  # the engine did not wait for it
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200
    while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        received += slow.recv(1 << 20)
    slow.close()
    lines = [line for line in received.split(b"\n") if line.startswith(b"data: {")]
    choices = [msgspec.json.decode(line[6:])["choices"][0] for line in lines]
    texts = ["".join(c["text"] for c in choices if c["index"] == index) for index in range(60)]
    assert texts == [chr(97 + index % 26) * 200 for index in range(60)]
    assert max(len(choice["text"]) for choice in choices) > 1
    assert len(engine.aborted) == 60  # it was parked


def test_a_request_that_waits_behind_another_does_not_hide_the_end(
    base_url: str, engine: FakeEngine
) -> None:
    """HTTP's pipelining: both came in one connection, and only the first has begun."""
    tokens = [97]
    engine.script = lambda _: tokens
    sock = connect(base_url, stream=True, max_tokens=200)
    wait_until(lambda: engine.num_running == 1)
    sock.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
    receive_until(sock, b"data: ")
    reset(sock)

    def is_over() -> bool:
        if len(tokens) < 150:
            tokens.append(97)  # a server that does not read learns of the end when it writes
        return engine.num_running == 0

    wait_until(is_over)
    assert engine.aborted == [engine.submitted[0].seq_id]
