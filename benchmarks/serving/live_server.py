"""A real `continuo serve` as a child process, and the leanest client that can read its streams.

The client shares the cores with the server, so it does no more than count events.
"""

from __future__ import annotations

import asyncio
import json
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


async def read_stream(port: int, body: dict[str, Any]) -> None:
    """Send one streamed completion and read it to its [DONE]; raises where that does not come."""
    payload = json.dumps({**body, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(payload) + payload
    )
    tail = b""
    while data := await reader.read(65536):
        tail = (tail + data)[-500:]
    writer.close()
    if b"data: [DONE]\n\n" not in tail:
        raise RuntimeError(tail.decode(errors="replace"))
