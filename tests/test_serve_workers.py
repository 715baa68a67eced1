"""`continuo serve --api-workers 2`: real processes, one engine behind both workers."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.cli import main
from server.config import ServeConfig
from server.errors import ConfigError
from server.startup import engine_threads
from tests.serving import Server
from tests.waiting import is_alive, stopped, wait_for

BODY: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True}
RESUMABLE = {**BODY, "stream": True, "stream_options": {"resumable": True}}
LONG = 2000  # tokens: not finished before the engine is stopped, however slow the one that stops it
RESTART_S = 60.0  # the start of an engine or api is seconds of work, on a busy machine many


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path) -> Iterator[Server]:
    running = Server(tiny_model_dir, "--api-workers", "2", "--resume-memory-mib", "8")
    try:
        yield running.wait_ready()
    finally:
        running.clean_up()


class _Stream:
    """One that is being read, with all that was read of it."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()
        self.text = ""
        self._read_line()
        self.id = self.text.partition(": ")[2].partition(":")[0]

    @property
    def worker(self) -> int:
        return int(self.id[-1], 16)

    def _read_line(self) -> None:
        self.text += next(self._lines) + "\n"

    def rest(self) -> str:
        """All of it, as one text."""
        self.text += "".join(f"{line}\n" for line in self._lines)
        return text_of(self.text)


def text_of(events: str) -> str:
    lines = [line[6:] for line in events.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", events[-300:]
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])


@contextmanager
def streams_at_both(server: Server, **fields: Any) -> Iterator[list[_Stream]]:
    """Running ones, of worker 0 and 1, once both take connections: one may have been started just now. On
    connections that short streams have found: the first is not far when the second begins."""
    found: dict[int, httpx.Client] = {}
    with ExitStack() as stack:

        def open_one(client: httpx.Client, **fields: Any) -> _Stream:
            request = client.stream("POST", "/v1/completions", json={**RESUMABLE, **fields})
            return _Stream(stack.enter_context(request))

        def find_one() -> bool:
            client = stack.enter_context(httpx.Client(base_url=server.address, timeout=60))
            short = open_one(client, max_tokens=1)
            short.rest()
            found[short.worker] = client  # the last one: idle connections are closed in the end
            return len(found) == 2

        wait_for(find_one, "both workers take connections", RESTART_S)
        streams = [open_one(found[worker], **fields) for worker in (0, 1)]
        assert [stream.worker for stream in streams] == [0, 1]
        yield streams


def complete(server: Server, **fields: Any) -> str:
    response = server.client.post("/v1/completions", json={**BODY, **fields})
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def test_both_workers_are_there_and_give_the_same_bytes(server: Server) -> None:
    assert server.pid_of("api 0")
    assert server.pid_of("api 1")
    assert "kept runs         4.0 MiB" in server.stderr  # a share of --resume-memory-mib
    alone = complete(server, seed=3)
    with streams_at_both(server, seed=3) as streams:
        assert [stream.rest() for stream in streams] == [alone, alone]


def test_an_engine_that_is_killed_is_replaced_for_both(server: Server) -> None:
    alone = complete(server, seed=4, max_tokens=LONG)
    restarts = server.metric("continuo:engine_restarts_total")
    engine = server.await_pid("engine 0")
    with streams_at_both(server, seed=4, max_tokens=LONG) as streams:
        with stopped(engine):
            wait_for(lambda: server.metric("vllm:num_requests_running") == 2, "both are running")
            server.kill("engine 0")
        assert [stream.rest() for stream in streams] == [alone, alone]
        assert all("cmpl-" in stream.text for stream in streams)
    wait_for(
        lambda: server.metric("continuo:engine_restarts_total") == restarts + 1,
        "it was replaced",
        RESTART_S,
    )


def test_a_worker_that_is_killed_is_replaced_and_the_other_goes_on(server: Server) -> None:
    long = {"seed": 5, "max_tokens": LONG}
    alone = complete(server, **long)
    engine = server.await_pid("engine 0")
    with streams_at_both(server, **long) as streams:
        with stopped(engine):  # so neither is finished, and wholly in a socket
            pid = server.kill("api 1")
            with pytest.raises(httpx.TransportError):
                streams[1].rest()
        assert streams[0].rest() == alone
    wait_for(lambda: server.pid_of("api 1") not in (0, pid), "there is another one", RESTART_S)
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, "its sequence is gone")
    with streams_at_both(server, **long) as streams:
        resumed = server.client.get(f"/v1/completions/{streams[1].id}/stream")
        assert text_of(resumed.text) == alone
        with httpx.Client(base_url=server.address, timeout=60) as client:
            resumed = client.get(f"/v1/completions/{streams[0].id}/stream")
        assert text_of(resumed.text) == alone


def test_what_the_engine_counts_is_on_the_page_once(server: Server) -> None:
    name = "vllm:generation_tokens_total"
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, "nothing runs")
    before = server.metric(name)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: complete(server, seed=seed), range(4)))
    wait_for(lambda: server.metric(name) >= before + 1600, "all is counted")
    with httpx.Client(base_url=server.address, timeout=60) as client:
        for _ in range(3):
            page = client.get("/metrics").text
            line = next(each for each in page.splitlines() if each.startswith(name))
            assert float(line.split()[-1]) == before + 1600


def test_sigterm_lets_both_finish(tiny_model_dir: Path) -> None:
    server = Server(tiny_model_dir, "--api-workers", "2").wait_ready()
    try:
        pids = [server.await_pid(name) for name in ("api 0", "api 1", "engine 0")]
        with streams_at_both(server, seed=6, max_tokens=LONG) as streams:
            with stopped(pids[2]):
                server.process.send_signal(signal.SIGTERM)
            texts = [stream.rest() for stream in streams]
            assert texts[0] == texts[1]
        assert server.process.wait(20) == 0
        assert not any(map(is_alive, pids))
    finally:
        server.clean_up()


@pytest.mark.parametrize("number", ["0", "17", "-1"])
def test_the_number_is_bounded(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--api-workers", number]) == 2
    assert "--api-workers must be between 1 and 16." in capsys.readouterr().err
    with pytest.raises(ConfigError):
        ServeConfig(api_workers=int(number))


def test_the_engine_keeps_three_cores_of_four() -> None:
    assert [engine_threads(cores, 1) for cores in (1, 2, 8, 64)] == [1, 2, 8, 64]
    assert [engine_threads(cores, 2) for cores in (1, 2, 3, 4, 8)] == [1, 2, 3, 3, 7]
    assert [engine_threads(cores, 16) for cores in (2, 8, 64)] == [2, 6, 49]
