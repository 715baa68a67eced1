"""What must be true after every case: nobody died, nothing stayed, the control stream is right."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.hostile.control import Control
from tests.hostile.sending import METRICS_KEY, get
from tests.hostile.wire import Address, exchange
from tests.serving import Server

_BACK_WITHIN_S = 1.0
_QUICK_S = 0.025  # an answer; while it takes longer, the machine is busy with other things
_IN_ALL_S = 60.0
# The api's pools grow to their sizes as they are needed, and stay: that of the loop is min(32, cores + 4).
_POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
_LINE = re.compile(r"^([a-z][\w:]*)(\{[^}]*\})? (\S+)$", re.MULTILINE)
_PROCESSES = ("api 0", "engine 0")


def scrape(address: Address) -> dict[str, float]:
    """Each name with the sum of its lines, on a connection that is closed at once."""
    sent = get(b"/metrics", b"Connection: close", key=METRICS_KEY)
    found = exchange(address, [sent], until_closed=True, timeout_s=30)
    assert [response.status for response in found.responses] == [200], found
    metrics: dict[str, float] = {}
    for name, _, value in _LINE.findall(found.responses[0].body.decode()):
        metrics[name] = metrics.get(name, 0.0) + float(value)
    return metrics


@dataclass(frozen=True)
class Held:
    """What the processes have open now."""

    num_fds: tuple[int, ...]
    num_threads: tuple[int, ...]
    num_connections: float
    num_tasks: float  # of the api
    num_open: float  # sequences
    kv_usage: float
    num_restarts: float  # of the engine

    def is_back_to(self, baseline: Held) -> bool:
        """`baseline` was taken with the control stream running, whose own use of blocks goes up and down."""
        return (
            self.num_fds == baseline.num_fds
            and sum(self.num_threads) <= sum(baseline.num_threads) + _POOL_THREADS
            and self.num_connections <= baseline.num_connections
            and self.num_tasks <= baseline.num_tasks
            and self.num_open <= baseline.num_open
            and self.kv_usage <= baseline.kv_usage
        )


class Watch:
    def __init__(self, server: Server, control: Control) -> None:
        self._server = server
        self.address = address_of(server)
        self.control = control
        self.pids = {name: server.pid_of(name) for name in _PROCESSES}
        self._processes = [psutil.Process(pid) for pid in (server.process.pid, *self.pids.values())]
        self._num_read = 0  # of the log
        self.num_retried: dict[str, int] = {}  # timings that were taken again, by case
        self._baseline = self._take_baseline()

    def _take_baseline(self) -> Held:
        """The most of what a second sees, but for descriptors: their number must stand still."""
        seen = []
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            seen.append(self.held())
            time.sleep(0.02)
        fds = [held.num_fds for held in seen]
        return Held(
            max(set(fds), key=fds.count),
            tuple(map(max, zip(*(held.num_threads for held in seen), strict=True))),
            max(held.num_connections for held in seen),
            max(held.num_tasks for held in seen),
            max(held.num_open for held in seen),
            max(held.kv_usage for held in seen),
            num_restarts=0,
        )

    def held(self) -> Held:
        metrics = scrape(self.address)
        return Held(
            tuple(process.num_fds() for process in self._processes),
            tuple(process.num_threads() for process in self._processes),
            metrics.get("continuo:connections", 0.0),
            metrics["continuo:tasks"],
            metrics["continuo:open_sequences"],
            metrics["vllm:kv_cache_usage_perc"],
            metrics["continuo:engine_restarts_total"],
        )

    def check(self) -> None:
        """Raises AssertionError where something is not as it was."""
        self.control.check()

        def fault() -> str:
            held = self.held()
            assert held.num_restarts == 0
            is_back = held.is_back_to(self._baseline)
            return "" if is_back else f"not back: {held}, it was {self._baseline}"

        self.check_soon(fault)
        self.check_faults()
        assert all(process.is_running() for process in self._processes), "a process was replaced"

    def check_soon(self, fault: Callable[[], str]) -> None:
        """Within a second it says nothing any more. Only time in which answers are quick counts."""
        spent_s, until = 0.0, time.monotonic() + _IN_ALL_S
        started = time.monotonic()
        while said := fault():
            assert spent_s < _BACK_WITHIN_S and time.monotonic() < until, said
            time.sleep(0.01)
            asked = get(b"/version", b"Connection: close")
            answered_s = exchange(self.address, [asked], until_closed=True).duration_s
            now = time.monotonic()
            spent_s += now - started if answered_s <= _QUICK_S else 0.0
            started = now

    def check_faults(self) -> None:
        """No log line since the last time tells of a fault of ours."""
        with Path(self._server.stderr_file.name).open() as log:
            log.seek(self._num_read)
            lines = log.read()
            self._num_read = log.tell()
        assert " failed: " not in lines, lines[lines.index(" failed: ") - 60 :][:1500]

    def check_idle(self) -> None:
        """Without the control stream there is nothing at all."""

        def fault() -> str:
            held = self.held()
            return f"idle, but {held}" if held.num_open or held.kv_usage else ""

        self.control.pause()
        try:
            self.check_soon(fault)
        finally:
            self.control.resume()
        self.control.check()

    def check_log(self, *secrets: bytes) -> None:
        """What a log may not hold in general is looked for where every server of the tests ends."""
        log = self._server.stderr
        assert not any(secret.decode() in log for secret in secrets)

    def cpu_s(self) -> float:
        """That the api has used."""
        tasks = Path(f"/proc/{self.pids['api 0']}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def address_of(server: Server) -> Address:
    host, _, port = server.address.removeprefix("http://").partition(":")
    return host, int(port)
