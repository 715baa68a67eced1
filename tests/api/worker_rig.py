"""Api processes as the supervisor starts them, several on one port, each over a scripted engine in here.

A scripted engine knows one api only; that a real one serves several is seen in tests/test_serve_workers.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from server.workers_board import WorkersBoard
from tests.api.fake_engine import FakeEngine
from tests.test_tokenizer_files import good_json

_CODE = """
import json, socket, sys
from server.api import process
from server.api.http import slow_readers
from server.api.workers.worker import Worker
from server.config import EngineConfig, ServeConfig
from server.logs import set_up_logging
from server.workers_board import WorkersBoard
told = json.loads(sys.argv[1])
slow_readers.CUT_AFTER_S = told["cut_after_s"]
set_up_logging(f"api {told['index']}", "text")
config = ServeConfig(EngineConfig(model=told["dir"]), served_model_name="tiny", **told["config"])
worker = Worker(told["index"], WorkersBoard(told["fds"][0], told["num"]), told["dir"], *told["fds"][1:])
listener = socket.socket(fileno=told["listen_fd"])
process.run_api(config, told["engine"], listener, lambda: print("ready", flush=True), None, worker)
"""
BODY: dict[str, Any] = {"prompt": "a", "max_tokens": 26, "seed": 1}
RESUMABLE = {**BODY, "stream": True, "stream_options": {"resumable": True}}


class Engines:
    """One for each worker; all are treated alike."""

    def __init__(self, directory: Path, num_workers: int) -> None:
        self.each = [
            FakeEngine(str(directory / f"engine-{index}.sock"), alphabet)
            for index in range(num_workers)
        ]

    @property
    def num_running(self) -> int:
        return sum(engine.num_running for engine in self.each)

    @property
    def num_submitted(self) -> int:
        return sum(len(engine.submitted) for engine in self.each)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No step is taken, or only the one that is at hand."""
        for engine in self.each:
            engine.is_paused = True
        try:
            yield
        finally:
            for engine in self.each:
                engine.is_paused = False

    @contextlib.contextmanager
    def slow(self, step_s: float) -> Iterator[None]:
        """A step takes so long."""
        for engine in self.each:
            engine.step_s = step_s
        try:
            yield
        finally:
            for engine in self.each:
                engine.step_s = 0.0


class Workers:
    """`cut_after_s`: slow readers are. `config`: of ServeConfig."""

    def __init__(
        self,
        directory: Path,
        engines: Engines,
        num_workers: int,
        *,
        cut_after_s: float = 60.0,
        **config: Any,
    ) -> None:
        (directory / "tokenizer.json").write_text(json.dumps(good_json()))
        self.engines = engines
        self._directory = directory
        self._num_workers = num_workers
        self._cut_after_s = cut_after_s
        self._config = {"api_workers": num_workers, **config}
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.board = WorkersBoard.create(num_workers)
        memory = [os.memfd_create(name) for name in ("limits", "counts")]
        self._fds = [self.board.fd, *memory]
        self.processes: dict[int, subprocess.Popen[str]] = {}
        is_tls = "ssl_certfile" in config
        self.verify: ssl.SSLContext | bool = (
            ssl.create_default_context(cafile=config["ssl_certfile"]) if is_tls else False
        )
        scheme = "https" if is_tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self.listener.getsockname()[1]}"
        for index in range(num_workers):
            self.start(index)
        for index in range(num_workers):
            self.wait_ready(index)

    def start(self, index: int) -> None:
        told = {
            "index": index,
            "num": self._num_workers,
            "dir": str(self._directory),
            "engine": self.engines.each[index].path,
            "listen_fd": self.listener.fileno(),
            "fds": self._fds,
            "cut_after_s": self._cut_after_s,
            "config": self._config,
        }
        with self._log(index).open("a") as log:
            self.processes[index] = subprocess.Popen(
                [sys.executable, "-c", _CODE, json.dumps(told)],
                pass_fds=[self.listener.fileno(), *self._fds],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def _log(self, index: int) -> Path:
        return self._directory / f"api-{index}.log"

    def wait_ready(self, index: int) -> None:
        stdout = self.processes[index].stdout
        assert stdout is not None
        assert stdout.readline() == "ready\n", self.log(index)

    def log(self, index: int) -> str:
        return self._log(index).read_text()

    def kill(self, index: int) -> None:
        """As the supervisor sees it; `start` gives it a successor."""
        process = self.processes[index]
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
        self.board.on_end(index)

    def client(self, **options: Any) -> httpx.Client:
        """A connection of its own; several requests of it are answered by the same worker."""
        limits = httpx.Limits(max_connections=1)
        return httpx.Client(
            base_url=self.url, verify=self.verify, timeout=20, limits=limits, **options
        )

    @contextlib.contextmanager
    def one_of_each(self, **options: Any) -> Iterator[list[httpx.Client]]:
        """A connection to each worker, by its index; told by the ids of what was begun there."""
        found: dict[int, httpx.Client] = {}
        with contextlib.ExitStack() as stack:
            for _ in range(64):
                client = stack.enter_context(self.client(**options))
                found.setdefault(owner_of(begun(client)[0]), client)
                if len(found) == self._num_workers:
                    break
            assert len(found) == self._num_workers, "all connections went to the same worker"
            yield [found[index] for index in range(self._num_workers)]

    def end(self, number: signal.Signals = signal.SIGKILL) -> list[int]:
        for process in self.processes.values():
            process.send_signal(number)
        statuses = [process.wait(20) for process in self.processes.values()]
        for process in self.processes.values():
            if process.stdout is not None:
                process.stdout.close()
        return statuses

    def close(self) -> None:
        self.end()
        self.listener.close()
        self.board.close()
        for fd in self._fds[1:]:
            os.close(fd)


def begun(client: httpx.Client) -> tuple[str, str]:
    """The id of a stream that is read to its end, and all of it."""
    response = client.post("/v1/completions", json=RESUMABLE)
    assert response.status_code == 200, response.text
    return response.text.partition(":")[2].partition(":")[0].strip(), response.text


def owner_of(stream_id: str) -> int:
    return int(stream_id[-1], 16)


@contextlib.contextmanager
def workers(num_workers: int = 2, **config: Any) -> Iterator[Workers]:
    """Their engine writes the alphabet."""
    with tempfile.TemporaryDirectory() as name:
        engines = Engines(Path(name), num_workers)
        running = None
        try:
            running = Workers(Path(name), engines, num_workers, **config)
            yield running
        finally:
            if running is not None:
                running.close()
            for engine in engines.each:
                engine.kill()


def alphabet(_: object) -> list[int]:
    return [1, 2, 3] * 8 + [1, 2]
