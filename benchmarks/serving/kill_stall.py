"""How long streams stand still when the engine is killed: 16 streams, embedded model, SIGKILL 60 times.

A stream's stall is the time between its last event before the kill and its first one after it; what the
engine needs to start is on its board, so `stall - start` is what is our own doing: noticing, waiting,
connecting, computing everything again.
"""

from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import socket
import statistics
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.report import Report
from benchmarks.serving.live_server import live_server
from server.board import SERVING, Board

STREAMS = 16
KILLS = 60
_PROMPT = "Once upon a time, in a village by the sea, there lived"
_MAX_TOKENS = 480  # of the model's context of 512
_EVENT = b"data: {"
_LIMIT_S = 60.0  # of one stall


@dataclass
class Kill:
    at: float  # of time.monotonic, as all of these
    spawned: float = 0.0
    ready: float = 0.0
    resumed: list[tuple[float, float]] = field(default_factory=list)  # last event, next event


class Streams:
    """Reads all of them; each that ends is followed by another."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poller = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._tails: dict[int, bytes] = {}
        self._names: dict[int, int] = {}  # a descriptor's present stream: its seed
        self.last_event: dict[int, float] = {}  # by stream, of those open ones that have had one
        self._seed = 0
        for _ in range(STREAMS):
            self._open()

    def _open(self) -> None:
        self._seed += 1
        body = {"prompt": _PROMPT, "max_tokens": _MAX_TOKENS, "ignore_eos": True, "stream": True,
                "seed": self._seed}  # fmt: skip
        payload = json.dumps(body).encode()
        client = socket.create_connection(("127.0.0.1", self._port))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(payload)
        client.sendall(head + payload)
        self._sockets[client.fileno()] = client
        self._tails[client.fileno()] = b""
        self._names[client.fileno()] = self._seed
        self._poller.register(client, select.EPOLLIN)

    def read(self, timeout_s: float) -> list[tuple[int, float, float]]:
        """Take what is there: each stream with an event, when it had its last one, and now."""
        moved = []
        for descriptor, _ in self._poller.poll(timeout_s):
            data = self._sockets[descriptor].recv(1 << 16)
            now = time.monotonic()
            name = self._names[descriptor]
            if _EVENT in data:
                if name in self.last_event:
                    moved.append((name, self.last_event[name], now))
                self.last_event[name] = now
            self._tails[descriptor] = (self._tails[descriptor] + data)[-64:]
            if not data:
                self._replace(descriptor)
        return moved

    def _replace(self, descriptor: int) -> None:
        if b"data: [DONE]\n\n" not in self._tails.pop(descriptor):
            raise RuntimeError("a stream broke")
        self._poller.unregister(descriptor)
        self._sockets.pop(descriptor).close()
        self.last_event.pop(self._names.pop(descriptor), None)
        self._open()

    def close(self) -> None:
        for client in self._sockets.values():
            client.close()
        self._poller.close()


def _measure(streams: Streams, rng: random.Random) -> Kill:
    """One kill, read until every stream that was running has moved again."""
    _read_for(streams, rng.uniform(0.5, 2.0))
    pid = _engine_pid()
    waiting = set(streams.last_event)
    os.kill(pid, signal.SIGKILL)
    kill = Kill(time.monotonic())
    with _board_of_next_engine(pid, streams, kill, waiting) as board:
        while waiting or not kill.ready:
            _read(streams, kill, waiting)
            if not kill.ready and board.phase == SERVING:
                kill.ready = time.monotonic()
            if time.monotonic() - kill.at > _LIMIT_S:
                raise RuntimeError(f"{len(waiting)} streams stand still")
    return kill


def _read_for(streams: Streams, seconds: float) -> None:
    """Behind the moment when all of them are running."""
    until = 0.0
    while not until or time.monotonic() < until:
        streams.read(0.01)
        if not until and len(streams.last_event) == STREAMS:
            until = time.monotonic() + seconds


def _read(streams: Streams, kill: Kill, waiting: set[int]) -> None:
    for name, before, now in streams.read(0.002):
        # What was on its way at the kill arrives within a moment; the stall is behind it.
        if name in waiting and kill.spawned and now > kill.spawned:
            waiting.discard(name)
            kill.resumed.append((before, now))
    waiting.intersection_update(
        streams.last_event
    )  # the others had their last token before the kill


def _engine_pid() -> int:
    for child in psutil.Process().children(recursive=True):
        try:
            if "engine 0" in " ".join(child.cmdline()):
                return child.pid
        except psutil.Error:
            continue
    return 0


@contextmanager
def _board_of_next_engine(pid: int, streams: Streams, kill: Kill, waiting: set[int]) -> Any:
    """Its process has the page open under the number that it inherited."""
    descriptor = -1
    while descriptor < 0:
        _read(streams, kill, waiting)
        found = _engine_pid()
        if found not in (0, pid):
            kill.spawned = kill.spawned or time.monotonic()
            descriptor = _open_board(found)
    board = Board(descriptor)
    try:
        yield board
    finally:
        board.close()


def _open_board(pid: int) -> int:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        if "continuo-board" in os.readlink(f"{folder}/{name}"):
            return os.open(f"{folder}/{name}", os.O_RDWR)
    return -1


def _num_replayed(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        page = answer.read().decode()
    found = re.search(r"^continuo:replayed_tokens_total\S* (\S+)$", page, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def run(kills: int = KILLS) -> Report:
    report = Report(
        "kill_stall",
        f"Embedded model, {STREAMS} streams, engine killed {kills} times: how long streams stand still",
        ("seconds", "median", "p99", "max"),
    )
    rng = random.Random(0)
    with live_server("--no-log-requests") as (port, _):
        streams = Streams(port)
        found = [_measure(streams, rng) for _ in range(kills)]
        report.figures["replayed_tokens"] = _num_replayed(port)
        streams.close()
    samples = {
        "stall of a stream": [now - before for kill in found for before, now in kill.resumed],
        "stall - start": [
            now - before - (kill.ready - kill.spawned)
            for kill in found
            for before, now in kill.resumed
        ],
        "kill to spawn": [kill.spawned - kill.at for kill in found],
        "spawn to ready (start)": [kill.ready - kill.spawned for kill in found],
        "ready to next event": [now - kill.ready for kill in found for _, now in kill.resumed],
    }
    for name, values in samples.items():
        p99 = statistics.quantiles(values, n=100)[98] if len(values) > 1 else values[0]
        report.add(name, statistics.median(values), p99, max(values))
        report.figures[f"{name}, median"] = statistics.median(values)
        report.figures[f"{name}, p99"] = p99
    report.figures["stalls"] = len(samples["stall of a stream"])
    report.samples = samples
    report.plot = _plot(samples)
    return report


def _plot(samples: dict[str, list[float]]) -> Any:
    def draw(axes: Any) -> None:
        axes.boxplot(list(samples.values()), tick_labels=list(samples), whis=(0, 100))
        axes.set_ylabel("seconds")
        axes.set_ylim(bottom=0)
        axes.tick_params(axis="x", labelsize=7)

    return draw
