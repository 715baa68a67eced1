"""A real `continuo serve` as a child process, and the leanest client that can read its streams.

The client shares the cores with the server, so it does no more than count events.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def live_server(*flags: str) -> Iterator[tuple[int, float]]:
    """Serve until the block ends; yields (port, seconds from spawn to the first 200 of /ready)."""
    port = free_port()
    started = time.perf_counter()
    command = [sys.executable, "-m", "server", "serve", "--port", str(port), *flags]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield port, _wait_until_ready(process, port) - started
        except Exception:
            log.seek(0)
            print(log.read().decode(errors="replace"), file=sys.stderr)
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> float:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1) as answer:
                if answer.status == 200:
                    return time.perf_counter()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.01)
    raise RuntimeError(f"the server ended with status {process.returncode} before it was ready")


def read_streams(port: int, bodies: list[dict[str, Any]]) -> None:
    """Send streamed completions side by side and read each to its [DONE]; raises where one is missing.

    Bare sockets and epoll, 8 us a token: whatever the client takes of the cores, the server lacks.
    """
    open_streams: dict[int, _Stream] = {}
    with select.epoll() as poller:
        for body in bodies:
            stream = _Stream(port, body)
            open_streams[stream.socket.fileno()] = stream
            poller.register(stream.socket, select.EPOLLIN)
        while open_streams:
            for descriptor, _ in poller.poll():
                if not open_streams[descriptor].read():
                    poller.unregister(descriptor)
                    open_streams.pop(descriptor).end()


class _Stream:
    """One request's connection."""

    def __init__(self, port: int, body: dict[str, Any]) -> None:
        payload = json.dumps({**body, "stream": True}).encode()
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(payload) + payload
        )
        self._tail = b""

    def read(self) -> bool:
        """Take what is there; False at the end."""
        data = self.socket.recv(65536)
        self._tail = (self._tail + data)[-64:]
        return bool(data)

    def end(self) -> None:
        self.socket.close()
        if b"data: [DONE]\n\n" not in self._tail:
            raise RuntimeError(self._tail.decode(errors="replace"))
