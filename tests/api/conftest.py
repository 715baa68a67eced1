"""The real application on a real TCP socket, with a scripted engine behind it."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from server.api.app import create_app
from server.api.engine_client import EngineClient
from server.api.process import uvicorn_config
from server.logs import TextFormatter
from server.tokenizer import Tokenizer
from server.tokenizer.encoding import Vocabulary
from tests.api.fake_engine import FakeEngine
from tests.clean_output import check_error, leaks_in

MODEL = "tests/tiny"
EOS = 256
# beyond the 256 single bytes and the special token; ids 300 to 329 make top logprobs' names
WORDS = [" the", " well", "Hello", " STOP", "é日", "日b"]
FIRST_WORD_ID = 257
HOLE = 299


def word(text: str) -> int:
    return FIRST_WORD_ID + WORDS.index(text)


def make_tokenizer() -> Tokenizer:
    tokens = {i: bytes([i]) for i in range(256)}
    mergeable = list(tokens.values())
    tokens |= {FIRST_WORD_ID + i: text.encode() for i, text in enumerate(WORDS)}
    tokens |= {300 + i: f"<{i}>".encode() for i in range(30)}
    special = {"<|endoftext|>": EOS}
    return Tokenizer(Vocabulary(tokens | {EOS: b"<|endoftext|>"}, mergeable, special, EOS, EOS))


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[FakeEngine]:
    with tempfile.TemporaryDirectory() as directory:
        engine = FakeEngine(str(Path(directory) / "engine.sock"), lambda _: [])
        yield engine
        engine.kill()


@pytest.fixture(scope="session")
def engine_client(shared_engine: FakeEngine) -> EngineClient:
    return EngineClient(shared_engine.path)


@pytest.fixture(scope="session")
def base_url(engine_client: EngineClient, tokenizer: Tokenizer) -> Iterator[str]:
    app = create_app(tokenizer, MODEL, engine_client)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn_config(app))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.start()
    try:
        with httpx.Client(base_url=url) as client:
            wait_until(lambda: client.get("/ready").status_code == 200)
        yield url
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def engine(shared_engine: FakeEngine) -> FakeEngine:
    """Fresh books for each test; the process behind is shared."""
    shared_engine.reset(lambda _: [ord(c) for c in "abcdefghijklmnopqrstuvwxyz"] + [EOS])
    return shared_engine


@pytest.fixture
def client(base_url: str, engine: FakeEngine) -> Iterator[httpx.Client]:
    hooks = {"response": [check_error]}
    with httpx.Client(base_url=base_url, timeout=20, event_hooks=hooks) as client:
        yield client


@pytest.fixture(autouse=True)
def clean_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test provokes, the log holds nothing that it may not."""
    yield
    formatter = TextFormatter("api 0")
    for record in caplog.get_records("call"):
        if record.name.startswith(("server", "uvicorn", "asyncio", "py.warnings")):
            assert leaks_in(formatter.format(record)) == []
