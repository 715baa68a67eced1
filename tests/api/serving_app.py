"""The real application with doors of a test's choice, on a real TCP socket, over a scripted engine."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from server.api.app import Doors, create_app
from server.api.engine_client import EngineClient
from server.api.http.connections import Connections
from server.api.process import uvicorn_config
from tests.api.conftest import EOS, MODEL, make_tokenizer, wait_until
from tests.api.fake_engine import FakeEngine

ALPHABET = [ord(c) for c in "abcdefghijklmnopqrstuvwxyz"]


@dataclass
class ServedApp:
    url: str
    engine: FakeEngine
    connections: Connections
    server: uvicorn.Server

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    def is_quiet(self) -> bool:
        """Nobody is connected, nothing is held and nothing runs for anybody."""
        state = self.server.server_state
        return (
            self.connections.num_open == self.connections.num_unfinished_bytes == 0
            and not state.connections
            and not state.tasks
        )


@contextlib.contextmanager
def served_app(
    doors: Doors,
    connections: Connections | None = None,
    *,
    max_queue_s: float = 30.0,
    **tls: str,
) -> Iterator[ServedApp]:
    """Its engine writes the alphabet. `tls`: ssl_certfile and ssl_keyfile."""
    connections = connections or Connections()
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as door:
        engine = FakeEngine(str(Path(directory) / "engine.sock"), lambda _: [*ALPHABET, EOS])
        client = EngineClient(engine.path)
        app = create_app(
            make_tokenizer(),
            MODEL,
            client,
            doors=doors,
            connections=connections,
            max_queue_s=max_queue_s,
        )
        server = uvicorn.Server(uvicorn_config(app, connections, **tls))
        thread = threading.Thread(target=lambda: server.run(sockets=[door]), daemon=True)
        thread.start()
        url = f"{'https' if tls else 'http'}://127.0.0.1:{door.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, verify=_trusting(tls)) as probe:
                wait_until(lambda: probe.get("/ready").status_code == 200)
            yield ServedApp(url, engine, connections, server)
        finally:
            server.should_exit = True
            thread.join(20)
            engine.kill()


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Has the one shape that all errors have."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    assert response.json().keys() == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert error["message"].endswith(".")
    return error


def _trusting(tls: dict[str, str]) -> ssl.SSLContext | bool:
    return ssl.create_default_context(cafile=tls["ssl_certfile"]) if tls else True


@contextlib.contextmanager
def connected(app: ServedApp) -> Iterator[socket.socket]:
    with socket.create_connection(app.address, timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection
