"""The client in the README, run as it stands there, through a proxy that cuts its connections anywhere."""

from __future__ import annotations

import importlib.util
import random
import re
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.app import Doors
from tests.api.conftest import EOS, word
from tests.api.serving_app import ServedApp, served_app

README = Path(__file__).parent.parent / "README.md"
IDS = [*b"Once upon a time ", word("é日"), 0xE6, 0x97, 0xA5, *b"there was a king. "] * 4
BODY = {"prompt": "Hi", "max_tokens": 200, "seed": 3}


class CuttingProxy:
    """Passes on what `budget` says of each connection's reply, in bytes, and then resets it."""

    def __init__(self, url: str, budget: Callable[[], int]) -> None:
        target = httpx.URL(url)
        assert target.port is not None
        self._target = (target.host, target.port)
        self._budget = budget
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []  # how each began
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes up who accepts
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.create_connection(self._target) as server:
                self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        client.settimeout(5)
        request = client.recv(1 << 16)
        while b"\r\n\r\n" not in request or (request.startswith(b"POST") and request[-1:] != b"}"):
            request += client.recv(1 << 16)
        self.requests.append(request)
        server.sendall(request)
        left = self._budget()
        while left > 0 and client not in select.select([client, server], [], [])[0]:
            data = server.recv(min(left, 256))
            client.sendall(data)
            left -= len(data) or left
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", left % 2, 0))


@pytest.fixture(scope="module")
def stream_completion(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Iterator[dict[str, Any]]]:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    found = [block for block in blocks if "def stream_completion(" in block]
    assert len(found) == 1, "README.md shows one client that resumes"
    source = found[0]
    assert len(source.splitlines()) <= 50, "it is to be short"
    file = tmp_path_factory.mktemp("readme") / "client.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location("readme_client", file)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.time = _HastyTime
    return module.stream_completion  # type: ignore[no-any-return]


class _HastyTime:
    """Waits hardly at all."""

    from time import monotonic

    @staticmethod
    def sleep(seconds: float) -> None:
        assert seconds <= 5
        threading.Event().wait(seconds / 50)


@pytest.fixture(scope="module")
def app() -> Iterator[ServedApp]:
    with served_app(Doors()) as app:
        app.engine.script = lambda _: [*IDS, EOS]
        yield app


@pytest.fixture
def proxied(app: ServedApp) -> Iterator[Callable[..., CuttingProxy]]:
    proxies: list[CuttingProxy] = []

    def proxied(budget: Callable[[], int]) -> CuttingProxy:
        proxies.append(CuttingProxy(app.url, budget))
        return proxies[-1]

    try:
        yield proxied
    finally:
        for proxy in proxies:
            proxy.close()


def text_of(chunks: Iterator[dict[str, Any]]) -> list[str]:
    return [chunk["choices"][0]["text"] for chunk in chunks]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_and_nothing_comes_twice(
    app: ServedApp,
    proxied: Callable[..., CuttingProxy],
    stream_completion: Callable[..., Iterator[dict[str, Any]]],
    seed: int,
) -> None:
    rng = random.Random(seed)
    proxy = proxied(lambda: rng.choice([rng.randrange(400), rng.randrange(8000)]))
    app.engine.submitted.clear()
    received = text_of(stream_completion(proxy.url, BODY))
    assert len(proxy.requests) > 5
    assert any(request.startswith(b"GET ") for request in proxy.requests)
    assert received == text_of(stream_completion(app.url, BODY))
    assert len(app.engine.submitted) == 2  # one for each


def test_what_was_cut_before_its_first_event_runs_once(
    app: ServedApp,
    proxied: Callable[..., CuttingProxy],
    stream_completion: Callable[..., Iterator[dict[str, Any]]],
) -> None:
    budgets = iter([0, 100, 300])
    proxy = proxied(lambda: next(budgets, 1 << 30))
    app.engine.submitted.clear()
    assert len("".join(text_of(stream_completion(proxy.url, BODY)))) > 100
    assert [request[:4] for request in proxy.requests] == [b"POST"] * 4
    assert len(app.engine.submitted) == 1


def test_errors_are_raised_and_not_repeated(
    app: ServedApp,
    proxied: Callable[..., CuttingProxy],
    stream_completion: Callable[..., Iterator[dict[str, Any]]],
) -> None:
    proxy = proxied(lambda: 1 << 30)
    with pytest.raises(RuntimeError, match="temperature"):
        list(stream_completion(proxy.url, {**BODY, "temperature": -1}))
    assert len(proxy.requests) == 1


def test_an_error_event_is_raised(
    app: ServedApp, stream_completion: Callable[..., Iterator[dict[str, Any]]]
) -> None:
    script, app.engine.script = app.engine.script, lambda _: [97]
    app.engine.failures = {0: "internal"}
    chunks = stream_completion(app.url, BODY)
    try:
        assert next(chunks)["choices"][0]["text"] == "a"
        with pytest.raises(RuntimeError, match="fault of ours"):
            next(chunks)
    finally:
        app.engine.script, app.engine.failures = script, {}
