"""Deaths of the other processes, and ends in the middle of work: what is lost is what must be."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.chaos.killer import START_S, Killer
from tests.chaos.reading import Answer, Body, ask
from tests.serving import Server
from tests.waiting import exists, stopped, wait_for

_RUNNING = "vllm:num_requests_running"
WORDS: Body = {"structured_outputs": {"regex": "([a-z]{3,9} ){150}"}, "ignore_eos": False}


def address_of(server: Server) -> str:
    return server.address.removeprefix("http://")


def body(seed: int = 0, **fields: object) -> Body:
    return {"prompt": "Once upon a time", "seed": seed, "ignore_eos": True, **fields}


def streamed(seed: int, max_tokens: int = 600) -> Body:
    options = {"include_usage": True}
    return body(seed, max_tokens=max_tokens, stream=True, stream_options=options)


class Crush:
    """Requests sent once, each in a thread of its own; what came of each."""

    def __init__(self, address: str, bodies: list[Body]) -> None:
        self.found: list[Answer | Exception | None] = [None] * len(bodies)
        self._threads = [
            threading.Thread(target=self._ask, args=(address, i, each), daemon=True)
            for i, each in enumerate(bodies)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, address: str, index: int, body: Body) -> None:
        try:
            self.found[index] = ask(address, body)
        except Exception as error:  # looked at by the test
            self.found[index] = error

    def join(self) -> list[Answer | Exception | None]:
        wait_for(lambda: not any(t.is_alive() for t in self._threads), "all have ended", 240)
        return self.found


def await_running(server: Server, num: int = 16) -> None:
    wait_for(lambda: server.metric(_RUNNING) >= num, f"{num} sequences are running", START_S)


class Knocker:
    """Connects again and again: a listening socket that anybody holds never refuses."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._address = host, int(port)
        self.num_refused = self.num_accepted = 0
        self._is_over = False
        self._thread = threading.Thread(target=self._knock, daemon=True)
        self._thread.start()

    def _knock(self) -> None:
        while not self._is_over:
            try:
                socket.create_connection(self._address, timeout=START_S).close()
                self.num_accepted += 1
            except ConnectionRefusedError:
                self.num_refused += 1
            time.sleep(0.01)

    def stop(self) -> None:
        self._is_over = True
        self._thread.join()


def test_a_killed_api_loses_its_own_streams_and_nothing_else(start: Callable[..., Server]) -> None:
    server = start().wait_ready()
    address = address_of(server)
    alone = ask(address, streamed(3))
    crush = Crush(address, [streamed(seed, 5000) for seed in range(16)])
    await_running(server)
    knocker = Knocker(address)
    before = server.kill("api 0")
    lost = crush.join()
    wait_for(lambda: server.pid_of("api 0") not in (0, before), "another api is there", START_S)
    wait_for(server.is_answering, "it has the engine", START_S)
    knocker.stop()
    assert all(isinstance(each, Exception) for each in lost)
    assert server.metric(_RUNNING) == server.metric("vllm:kv_cache_usage_perc") == 0
    assert ask(address, streamed(3)) == alone
    assert knocker.num_refused == 0 < knocker.num_accepted


@pytest.mark.parametrize("moment", ["start", "idle", "streams", "engine restart", "drain"])
def test_nothing_outlives_a_killed_supervisor(start: Callable[..., Server], moment: str) -> None:
    server = start()
    if moment == "start":
        wait_for(lambda: server.pid_of("engine 0"), "the engine has begun", START_S)
    else:
        server.wait_ready()
    if moment not in ("start", "idle"):
        bodies = [streamed(seed, 3000) for seed in range(15)]
        Crush(address_of(server), [streamed(99, 1500) | WORDS, *bodies])  # grammar processes, too
        await_running(server)
    pids = server.all_pids()
    if moment == "engine restart":
        server.kill("engine 0")
        pids.append(Killer(server, random.Random(), 1).engine_pid())
    if moment == "drain":
        server.process.terminate()
        wait_for(lambda: server.client.get("/ready").status_code == 503, "it is draining")
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not any(map(exists, pids)), "everything is gone", timeout_s=3)
    assert holders_of(server.temporary_dir.name) == []


def holders_of(path: str) -> list[str]:
    """Processes that have a socket in there, or that work there."""
    listening = Path("/proc/net/unix").read_text()
    return [line for line in listening.splitlines() if path in line]


def test_a_killed_masker_fails_at_most_the_one_it_was_at(
    start: Callable[..., Server], rng: random.Random
) -> None:
    server = start().wait_ready()
    bodies = [streamed(seed, 1500) | WORDS for seed in range(12)]
    expected = Crush(address_of(server), bodies).join()
    assert all(isinstance(each, dict) for each in expected), expected
    crush = Crush(address_of(server), bodies)
    num_killed = 0
    for _ in range(3):
        time.sleep(rng.uniform(0.1, 0.6))
        for pid in grammar_pids(server):
            os.kill(pid, signal.SIGKILL)
            num_killed += 1
    found = crush.join()
    assert num_killed
    failed = [each for each, whole in zip(found, expected, strict=True) if each != whole]
    assert len(failed) <= num_killed
    assert all("'error'" in str(each) for each in failed), failed
    assert server.metric("continuo:engine_restarts_total") == 0
    wait_for(lambda: not server.metric("continuo:open_sequences"), "nothing is open")


def grammar_pids(server: Server) -> list[int]:
    parts = Path(f"/proc/{server.pid_of('engine 0')}/task").glob("*/children")
    return [int(pid) for part in parts for pid in part.read_text().split()]


def test_a_drain_lets_streams_end_although_the_engine_dies(start: Callable[..., Server]) -> None:
    server = start("--drain-seconds", "120", "--stall-seconds", "60").wait_ready()
    address = address_of(server)
    bodies = [streamed(seed, 1000) for seed in range(15)] + [body(99, max_tokens=1000)]
    expected = Crush(address, bodies).join()
    crush = Crush(address, bodies)
    await_running(server)
    with stopped(server.await_pid("engine 0")):  # none of them ends before it dies
        pids = server.all_pids()
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.client.get("/ready").status_code == 503, "it is draining")
        refused = server.client.post("/v1/completions", json=body(max_tokens=1))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert refused.headers["retry-after"]
        server.kill("engine 0")
    assert crush.join() == expected
    assert server.process.wait(timeout=20) == 0
    assert not any(map(exists, pids))
    assert os.listdir(server.temporary_dir.name) == []


def test_a_poisonous_request_fails_alone(start: Callable[..., Server]) -> None:
    from tests.chaos.poisoned_server import POISON

    server = start(module="tests.chaos.poisoned_server").wait_ready()
    address = address_of(server)
    bodies = [streamed(seed) for seed in range(15)]
    expected = Crush(address, bodies).join()
    crush = Crush(address, bodies)
    await_running(server, 15)
    poison = body(prompt=[POISON, 7, 8], max_tokens=20)
    failed = post(address, poison)
    assert failed == (500, "engine_crash")
    assert crush.join() == expected
    assert 2 <= server.metric("continuo:engine_restarts_total") <= 4
    restarts = server.metric("continuo:engine_restarts_total")
    assert post(address, {**poison, "seed": 5}) == (500, "engine_crash")
    assert server.metric("continuo:engine_restarts_total") == restarts
    assert ask(address, bodies[0]) == expected[0]


def post(address: str, body: Body) -> tuple[int, str]:
    """Status and code of an error."""
    connection = HTTPConnection(address, timeout=120)
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    found = response.status, json.loads(response.read())["error"]["code"]
    connection.close()
    return found
