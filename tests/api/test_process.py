"""The api process for real: it imports no torch, says when it is ready, and ends in good order."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from server.api.engine_client import EngineClient
from server.api.http.drain import Drain
from server.api.process import _Server, uvicorn_config
from server.board import SERVING, Board
from server.sequence import SequenceRequest
from tests.api.conftest import wait_until
from tests.api.fake_engine import FakeEngine
from tests.test_tokenizer_files import good_json

_CODE = """
import socket, sys
from server.api import process
from server.config import EngineConfig, ServeConfig
assert "torch" not in sys.modules and "numba" not in sys.modules
engine = EngineConfig(model=sys.argv[1])
config = ServeConfig(engine, served_model_name="tiny", drain_seconds=float(sys.argv[4]))
listener = socket.socket(fileno=int(sys.argv[3]))
process.run_api(config, sys.argv[2], listener, lambda: print("ready", flush=True))
assert "torch" not in sys.modules
print("ended", flush=True)
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(str(tmp_path / "engine.sock"), lambda _: [1, 2, 3])
    yield engine
    engine.kill()


@pytest.fixture
def drain_s() -> float:
    return 20.0


@pytest.fixture
def process_and_url(
    tmp_path: Path, engine: FakeEngine, drain_s: float
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    (tmp_path / "tokenizer.json").write_text(json.dumps(good_json()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        arguments = [str(tmp_path), engine.path, str(listener.fileno()), str(drain_s)]
        process = subprocess.Popen(
            [sys.executable, "-c", _CODE, *arguments],
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    with process:
        yield process, url
        process.kill()


def test_from_start_to_sigterm(
    engine: FakeEngine, process_and_url: tuple[subprocess.Popen[str], str]
) -> None:
    process, url = process_and_url
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    may_finish = threading.Event()

    def script(_: SequenceRequest) -> list[int]:
        may_finish.wait(20)  # the engine stands still until the api was told to end
        return [1, 2, 3, 4]

    engine.script = script
    replies: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: replies.append(
            httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 4}, timeout=20)
        )
    )
    with closing(_connection(url)) as idle, httpx.Client(base_url=url) as client:
        idle.request("GET", "/health")
        idle.getresponse().read()
        asking.start()
        wait_until(lambda: len(engine.submitted) == 1)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: _is_draining(client))
        time.sleep(0.3)  # for it to end too early, if it does
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        may_finish.set()
        asking.join()
        assert replies[0].json()["usage"]["completion_tokens"] == 4
        # though two connections are kept alive by their clients
        stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout, stderr) == (0, "ended\n", "")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.mark.parametrize(("drain_s", "number"), [(0.2, signal.SIGTERM), (60.0, signal.SIGINT)])
def test_a_stream_that_may_not_go_on_ends_with_an_error_event(
    engine: FakeEngine,
    process_and_url: tuple[subprocess.Popen[str], str],
    number: signal.Signals,
) -> None:
    process, url = process_and_url
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    engine.script = lambda _: [1]  # then it hangs
    body = {"prompt": "a", "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=10) as stream:
        lines = (line for line in stream.iter_lines() if line)
        next(lines)
        process.send_signal(number)
        *_, last = lines
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout, stderr) == (0, "ended\n", "")
    wait_until(lambda: engine.num_running == 0)


@pytest.mark.parametrize("drain_s", [0.2])
def test_a_plain_request_that_outlasts_the_drain_is_a_503(
    engine: FakeEngine, process_and_url: tuple[subprocess.Popen[str], str]
) -> None:
    process, url = process_and_url
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    engine.script = lambda _: []
    with closing(_connection(url)) as plain:
        headers = {"Content-Type": "application/json"}
        plain.request("POST", "/v1/completions", json.dumps({"prompt": "a"}), headers)
        wait_until(lambda: engine.num_running == 1)
        process.send_signal(signal.SIGTERM)
        response = plain.getresponse()
        assert response.status == 503
        assert json.loads(response.read())["error"]["type"] == "server_error"
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout, stderr) == (0, "ended\n", "")
    wait_until(lambda: engine.num_running == 0)


class _Connection:
    """As uvicorn knows one."""

    def __init__(self, num_unread: int) -> None:
        self.transport = self
        self.num_unread = num_unread

    def get_write_buffer_size(self) -> int:
        return self.num_unread


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create()
    board.begin_life(1)
    yield board
    board.close()


def test_the_end_waits_until_clients_have_read_and_the_board_says_so_meanwhile(
    tmp_path: Path, board: Board
) -> None:
    drain, slow = Drain(), _Connection(1)
    config = uvicorn_config(lambda *_: None)
    config.load()
    server = _Server(
        config, EngineClient(str(tmp_path)), print, drain=drain, drain_s=60, board=board
    )
    server.server_state.connections.update([slow, _Connection(0)])
    server.handle_exit(signal.SIGTERM, None)
    server.handle_exit(signal.SIGTERM, None)
    started_s = board.read().progress_s
    assert not asyncio.run(server.on_tick(0))
    seen = board.read()
    assert (seen.phase, seen.progress_s > started_s) == (SERVING, True)
    slow.num_unread = 0
    assert asyncio.run(server.on_tick(1))
    assert board.read().progress_s > seen.progress_s


def _connection(url: str) -> HTTPConnection:
    return HTTPConnection(httpx.URL(url).netloc.decode(), timeout=20)


def _is_draining(client: httpx.Client) -> bool:
    """A new completion is refused; the drain may not have begun yet."""
    response = client.post("/v1/completions", json={"prompt": ""})  # else a 400
    if response.status_code == 400:
        return False
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "draining"
    assert (response.headers["retry-after"], response.headers["connection"]) == ("5", "close")
    return True
