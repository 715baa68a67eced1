"""Writing past ASGI: chunks of the right response, nothing to a connection that is lost, pauses that end."""

from __future__ import annotations

import socket
from typing import Any, cast

import httpx
import msgspec
import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from server.api.http.http_protocol import BodyWriter, _Flow
from tests.api.fake_engine import FakeEngine


class Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        if self.closing:
            raise RuntimeError("the handler is closed")  # as uvloop's does
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closing

    def set_write_buffer_limits(self, high: int) -> None:
        """Nothing waits here."""

    def get_extra_info(self, name: str) -> None:
        """There is no socket."""


class Cycle:
    def __init__(self) -> None:
        self.transport = Transport()
        self.disconnected = False


@pytest.fixture
def cycle() -> Cycle:
    return Cycle()


def writer_of(cycle: Cycle) -> tuple[BodyWriter, _Flow]:
    flow = _Flow(cast(Any, cycle.transport))
    return BodyWriter(cast(RequestResponseCycle, cycle), flow), flow


@pytest.mark.parametrize("loss", ["disconnected", "closing"])
def test_a_lost_connection_takes_no_more(cycle: Cycle, loss: str) -> None:
    writer, _ = writer_of(cycle)
    writer.write(b"0123456789abcdef")
    setattr(cycle if loss == "disconnected" else cycle.transport, loss, True)
    writer.write(b"late")
    assert cycle.transport.written == [b"10\r\n0123456789abcdef\r\n"]


def test_the_end_of_a_pause_is_told_until_the_response_ends(cycle: Cycle) -> None:
    writer, flow = writer_of(cycle)
    ended: list[bool] = []
    writer.start(lambda: ended.append(writer.is_paused))
    flow.pause_writing()
    assert writer.is_paused
    flow.resume_writing()
    assert ended == [False]
    writer.stop()
    flow.pause_writing()
    flow.resume_writing()
    assert ended == [False]


def test_pipelined_streams_are_answered_one_after_the_other(
    base_url: str, engine: FakeEngine
) -> None:
    url = httpx.URL(base_url)
    assert url.port is not None
    engine.script = lambda request: request.prompt_ids * 3
    requests = b""
    for prompt in "xyz":
        body = msgspec.json.encode({"prompt": prompt, "stream": True, "max_tokens": 3})
        requests += b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
        requests += b"Content-Type: application/json\r\n"
        requests += b"Content-Length: %d\r\n\r\n" % len(body) + body
    received = b""
    with socket.create_connection((url.host, url.port), timeout=10) as sock:
        sock.sendall(requests)
        while received.count(b"\r\n0\r\n\r\n") < 3:
            received += sock.recv(1 << 16)
    lines = [line for line in received.split(b"\n") if line.startswith(b"data: {")]
    texts = [msgspec.json.decode(line[6:])["choices"][0]["text"] for line in lines]
    assert "".join(texts) == "xxxyyyzzz"
