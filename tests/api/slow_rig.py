"""The real application and real sockets whose kernel buffers are small: a client that does not read is
noticed before megabytes have gone there.
"""

from __future__ import annotations

import contextlib
import re
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvicorn

from server.api.app import Doors, create_app
from server.api.engine_client import EngineClient
from server.api.process import uvicorn_config
from server.sequence import SequenceRequest
from tests.api.conftest import MODEL, make_tokenizer, wait_until
from tests.api.fake_engine import INFO, FakeEngine
from tests.api.prometheus_page import read_page

KERNEL_BYTES = 1 << 14
MAX_TOKENS = 1500
_DATA = re.compile(rb"data: (\{[^\n]*\})\n\n")


def script(request: SequenceRequest) -> list[int]:
    """Every choice of every prompt has a text of its own."""
    salt = sum(request.prompt_ids) + request.choice
    return [97 + (salt * position + position // 7) % 26 for position in range(MAX_TOKENS)]


def text_of(prompt: str, num_tokens: int, choice: int = 0) -> str:
    salt = sum(prompt.encode()) + choice
    return "".join(chr(97 + (salt * p + p // 7) % 26) for p in range(num_tokens))


class SlowRig:
    def __init__(self, port: int, engine: FakeEngine) -> None:
        self.port = port
        self.engine = engine
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def ask(self, headers: str = "", **fields: Any) -> socket.socket:
        """Sends a request; its reader reads nothing by itself."""
        body = msgspec.json.encode({"prompt": "Hi", "stream": True, **fields})
        sock = socket.socket()
        sock.settimeout(30)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        sock.connect(("127.0.0.1", self.port))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        return sock

    def value(self, name: str, **labels: str) -> float:
        page = read_page(self.client.get("/metrics").text)
        return page[name].total(**labels)

    def wait_parked(self, num: int) -> None:
        wait_until(lambda: self.value("continuo:parked_streams") == num, 30)


@contextlib.contextmanager
def slow_rig() -> Iterator[SlowRig]:
    with tempfile.TemporaryDirectory() as directory, socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)  # connections inherit it
        door.bind(("127.0.0.1", 0))
        door.listen(512)
        engine = FakeEngine(str(Path(directory) / "engine.sock"), script)
        engine.kill()
        engine.info = msgspec.structs.replace(INFO, max_model_len=MAX_TOKENS + 100)
        engine.start()
        doors = Doors(logs_requests=True)
        app = create_app(
            make_tokenizer(), MODEL, EngineClient(engine.path), doors=doors, resume_bytes=1 << 20
        )
        server = uvicorn.Server(uvicorn_config(app))
        thread = threading.Thread(target=lambda: server.run(sockets=[door]), daemon=True)
        thread.start()
        rig = SlowRig(door.getsockname()[1], engine)
        try:
            wait_until(lambda: rig.client.get("/ready").status_code == 200)
            yield rig
        finally:
            rig.client.close()
            server.should_exit = True
            thread.join(20)
            engine.kill()


def read_all(sock: socket.socket) -> bytes:
    """To the end of the connection, from now on with a window that makes it quick."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    received = bytearray()
    while part := sock.recv(1 << 16):
        received += part
    sock.close()
    return bytes(received)


def texts_of(data: bytes, n: int = 1) -> list[str]:
    """Of a whole stream."""
    assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), data[-200:]
    texts = [""] * n
    for event in _DATA.findall(_unchunked(data.partition(b"\r\n\r\n")[2])):
        for choice in msgspec.json.decode(event)["choices"]:
            texts[choice["index"]] += choice["text"]
    return texts


def _unchunked(data: bytes) -> bytes:
    body, at = bytearray(), 0
    while at < len(data):
        end = data.index(b"\r\n", at)
        start, num_bytes = end + 2, int(data[at:end], 16)
        body += data[start : start + num_bytes]
        at = start + num_bytes + 2
        assert data[at - 2 : at] == b"\r\n"
    return bytes(body)
