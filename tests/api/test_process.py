"""The api process for real: it imports no torch, says when it is ready, and ends on SIGTERM."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from server.sequence import SequenceRequest
from tests.api.conftest import wait_until
from tests.api.fake_engine import FakeEngine
from tests.test_tokenizer_files import good_json

_CODE = """
import socket, sys
from server.api import process
from server.config import EngineConfig, ServeConfig
assert "torch" not in sys.modules and "numba" not in sys.modules
config = ServeConfig(EngineConfig(model=sys.argv[1]), served_model_name="tiny")
listener = socket.socket(fileno=int(sys.argv[3]))
process._GRACE_S = float(sys.argv[4])
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
def grace_s() -> float:
    return 20.0


@pytest.fixture
def process_and_url(
    tmp_path: Path, engine: FakeEngine, grace_s: float
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    (tmp_path / "tokenizer.json").write_text(json.dumps(good_json()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        arguments = [str(tmp_path), engine.path, str(listener.fileno()), str(grace_s)]
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
    asking.start()
    wait_until(lambda: len(engine.submitted) == 1)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: _is_refused(url))
    may_finish.set()
    asking.join()
    assert replies[0].json()["usage"]["completion_tokens"] == 4
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout, stderr) == (0, "ended\n", "")


@pytest.mark.parametrize("grace_s", [0.2])
def test_a_stream_that_outlasts_the_grace_ends_with_an_error_event(
    engine: FakeEngine, process_and_url: tuple[subprocess.Popen[str], str]
) -> None:
    process, url = process_and_url
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    engine.script = lambda _: [1]  # then it hangs
    body = {"prompt": "a", "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=20) as stream:
        lines = (line for line in stream.iter_lines() if line)
        next(lines)
        process.send_signal(signal.SIGTERM)
        *_, last = lines
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout, stderr) == (0, "ended\n", "")
    wait_until(lambda: engine.num_running == 0)


@pytest.mark.parametrize("grace_s", [0.2])
def test_a_plain_request_that_outlasts_the_grace_is_a_503(
    engine: FakeEngine, process_and_url: tuple[subprocess.Popen[str], str]
) -> None:
    process, url = process_and_url
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    engine.script = lambda _: []
    with closing(HTTPConnection(httpx.URL(url).netloc.decode(), timeout=20)) as plain:
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


def _is_refused(url: str) -> bool:
    try:
        httpx.get(f"{url}/health")
    except httpx.TransportError:  # refused, or taken by the kernel and dropped
        return True
    return False
