"""HTTP as bytes on a socket: what is sent, and what comes until the server closes."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

BODY = json.dumps({"prompt": "a", "max_tokens": 3}).encode()
JSON = b"Content-Type: application/json\r\n"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def error(self, status: int) -> dict[str, Any]:
        """Has the one shape that all errors have, and is the last of its connection."""
        assert self.status == status, (self.status, self.body)
        assert self.headers["connection"] == "close"
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"]
        assert ("x-should-retry" in self.headers) is (status not in (408, 503))
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"].endswith(".")
        return error


def post(*lines: bytes, body: bytes = BODY, target: bytes = b"/v1/completions") -> bytes:
    """With its Content-Length, unless a line says how the body is framed."""
    framed = any(line.lower().startswith((b"content-length", b"transfer-")) for line in lines)
    lines = lines if framed else (b"Content-Length: %d" % len(body), *lines)
    head = b"POST %b HTTP/1.1\r\nHost: a\r\n%b" % (target, JSON)
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def get(target: bytes = b"/version", *lines: bytes, host: bytes | None = b"a") -> bytes:
    named = [] if host is None else [b"Host: " + host]
    return b"\r\n".join([b"GET %b HTTP/1.1" % target, *named, *lines, b"", b""])


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


def received(connection: socket.socket) -> bytes:
    """All until its end."""
    data = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            data += part
    return data


def exchange(address: tuple[str, int], pieces: Iterable[bytes]) -> list[Answer]:
    """The answers until the server closes, which it must."""
    with socket.create_connection(address, timeout=10) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before the last piece
            for piece in pieces:
                connection.sendall(piece)
        return answers(received(connection))


def next_answer(connection: socket.socket) -> Answer:
    """One that has a length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)
    head = data.partition(b"\r\n\r\n")[0].lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(data) < len(head) + 4 + length:
        data += connection.recv(1 << 16)
    (answer,) = answers(data)
    return answer


def answers(data: bytes) -> list[Answer]:
    """All of them whole; their bodies have a length or are chunked."""
    found = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, head
        first, *lines = head.decode("ascii").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        if status == "100":
            continue
        if "content-length" in headers:
            length = int(headers["content-length"])
            body, data = data[:length], data[length:]
            assert len(body) == length
        else:
            body, _, data = data.partition(b"0\r\n\r\n")
        found.append(Answer(int(status), headers, body))
    return found


def trickle(connection: socket.socket, data: bytes, gap_s: float) -> float:
    """A byte at a time until all is sent or the server has something to say; seconds until then."""
    started_at = time.monotonic()
    connection.setblocking(False)
    for at in range(len(data)):
        try:
            connection.send(data[at : at + 1])
            if connection.recv(1, socket.MSG_PEEK) is not None:
                break
        except BlockingIOError:
            time.sleep(gap_s)
        except OSError:
            break
    connection.settimeout(10)
    return time.monotonic() - started_at
