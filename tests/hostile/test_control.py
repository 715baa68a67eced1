"""The control stream's own failures: each is told once, and those that come next have a new stream, which
must say what the first one said.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.hostile.control import Control
from tests.waiting import wait_for

_REFUSED = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"


def _stream(text: str) -> bytes:
    head = {"id": "a", "created": 1, "model": "m", "seed": 1, "system_fingerprint": "f"}
    choice = {"index": 0, "text": text, "finish_reason": "length"}
    chunks = ({**head, "choices": [choice]}, {**head, "choices": [], "usage": {"total_tokens": 1}})
    data = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n{data}".encode()


class Scripted:
    """A server that gives every request the same answer, or that of `next` once; b"": it closes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self.usual = _stream("right")
        self.next: list[bytes] = []
        self.num_connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.num_connections += 1
                with sock, suppress(ConnectionError):
                    self._answer(sock)

    def _answer(self, sock: socket.socket) -> None:
        while b"\r\n\r\n" in sock.recv(65536):
            answer = self.next.pop() if self.next else self.usual
            if not answer:
                return
            sock.sendall(answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def _controlled(patience_s: float = 10.0) -> Iterator[tuple[Scripted, Control]]:
    server = Scripted()
    control = Control(server.address, patience_s)
    try:
        yield server, control
    finally:
        control.stop()
        server.close()


def _wait_answers(control: Control, num: int = 3) -> None:
    wanted = control.num_answers + num
    wait_for(lambda: control.num_answers >= wanted, "the control stream goes on")


@pytest.mark.parametrize(
    ("answer", "message"),
    [(_REFUSED, "status=503"), (b"", "was closed"), (_stream("wrong"), "has other ['choices']")],
    ids=["refused", "closed", "wrong"],
)
def test_a_failure_is_told_once_and_the_next_has_a_new_stream(answer: bytes, message: str) -> None:
    with _controlled() as (server, control):
        for num in (2, 3):  # connections
            _wait_answers(control)
            control.check()
            server.next.append(answer)
            wait_for(lambda: not server.next, "it has been answered so")
            wait_for(lambda: message in _told(control), "that is told")
            control.check()
            _wait_answers(control)
            control.check()
            assert server.num_connections == num


def _told(control: Control) -> str:
    try:
        control.check()
    except AssertionError as error:
        return str(error)
    return ""


def test_a_new_stream_must_say_what_the_first_one_said() -> None:
    with _controlled(patience_s=0.5) as (server, control):
        server.usual = _stream("another")
        server.next.append(_REFUSED)
        for _ in range(2):  # again and again, as long as it is so
            wait_for(lambda: "has other ['choices']" in _told(control), "that is told")
        server.usual = _stream("right")
        _wait_answers(control)
        _told(control)  # one more, of in between
        control.check()


def _pause_until_it_fails(control: Control) -> None:
    for _ in range(1000):
        control.pause()
        control.resume()


def test_a_failure_that_a_pause_finds_leaves_nobody_paused() -> None:
    with _controlled() as (server, control):
        server.next.append(_REFUSED)
        wait_for(lambda: not server.next, "it has been refused")
        with pytest.raises(AssertionError, match="status=503"):
            _pause_until_it_fails(control)
        _wait_answers(control)
        control.pause()
        num_answers = control.num_answers
        control.check()
        assert control.num_answers == num_answers
