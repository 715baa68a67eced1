"""The engine is ended at random moments under 16 open requests, and nobody notices but the clock."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable

import psutil

from tests.chaos.crowd import Crowd
from tests.chaos.killer import Killer
from tests.chaos.references import references
from tests.serving import Server
from tests.waiting import wait_for


def num_fds(server: Server) -> dict[str, int]:
    pids = {"supervisor": server.process.pid, "api": server.pid_of("api 0")}
    return {name: psutil.Process(pid).num_fds() for name, pid in pids.items()}


def num_deaths(server: Server, cause: str) -> float:
    """As the api heard of them."""
    return server.metric(rf'continuo:engine_deaths_total\{{.*cause="{cause}".*\}}')


def is_idle(server: Server) -> bool:
    gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return not any(map(server.metric, (*gauges, "continuo:open_sequences")))


def test_every_stream_survives_every_death_of_the_engine(
    start: Callable[..., Server], rng: random.Random, is_long: bool
) -> None:
    server = start().wait_ready()
    address = server.address.removeprefix("http://")
    expected = references(address, num_at_once=1 if is_long else 4)
    wait_for(lambda: is_idle(server), "nothing is open")
    fds = num_fds(server)
    killer = Killer(server, rng, max_tokens=8000 if is_long else 4000)
    crowd = Crowd(address, expected, seed=rng.randrange(1 << 20))
    while killer.num_deaths < (200 if is_long else 20):
        killer.strike()
        crowd.check()
    killer.settle()
    crowd.stop()
    print(f"{killer.num_killed} killed, {killer.num_stopped} stopped, answers {crowd.num_answers}")
    assert all(crowd.num_answers)
    check_counters(server, killer)
    wait_for(lambda: is_idle(server), "nothing is open")
    wait_for(lambda: num_fds(server) == fds, f"file descriptors are {fds} again")
    killer.settle()
    assert server.end(signal.SIGTERM) == 0
    assert killer.left_over() == []
    assert os.listdir(server.temporary_dir.name) == []
    assert "Traceback" not in server.stderr


def check_counters(server: Server, killer: Killer) -> None:
    """No token was drawn differently, and no engine ended that was not killed."""
    assert server.metric("continuo:replay_mismatches_total") == 0
    assert server.metric("continuo:sequence_failures_total") == 0
    assert num_deaths(server, "SIGKILL") == killer.num_killed
    assert num_deaths(server, "stall") == killer.num_stopped
    assert server.metric("continuo:engine_deaths_total") == killer.num_deaths
    assert 0 < server.metric("continuo:engine_restarts_total") <= killer.num_deaths
    assert server.metric("continuo:replayed_tokens_total") > 0
