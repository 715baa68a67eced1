"""Runs parts in child processes: one that breaks or hangs takes down only the part it is in."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue

from benchmarks.gpu.jobs import ROOT, stop_group
from benchmarks.gpu.record import Record

_LEAST_S = 8.0  # with less left no further part is begun
_POLL_S = 0.5


class Children:
    """`command` begins a child over the parts appended to it, which says "start NAME" and "end NAME".

    `budgets`: seconds of each part; `grace_s`: what it may overrun, being told of its deadline; `start_s`:
    for imports and a device that wakes up.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        budgets: Mapping[str, float],
        *,
        grace_s: float = 12.0,
        start_s: float = 90.0,
    ) -> None:
        self._command = command
        self._folder = folder
        self._budgets = budgets
        self._grace_s = grace_s
        self._start_s = start_s

    def run(
        self, names: Sequence[str], deadline: float, on_end: Callable[[Sequence[str]], None]
    ) -> None:
        """All parts until `deadline` (monotonic). `on_end` gets the parts that a child has begun."""
        left = list(names)
        while left:
            if deadline - time.monotonic() < _LEAST_S:
                self._mark_all(left, "no time was left")
                return
            started = self._run_child(left, deadline)
            on_end(started)
            left = [name for name in left if name not in started]
            if not started:
                self._mark_all(left, "the process did not start; see what it printed")
                return

    def _run_child(self, names: Sequence[str], deadline: float) -> list[str]:
        seconds = ["--seconds-left", f"{deadline - time.monotonic() - _LEAST_S / 2:.1f}"]
        process = subprocess.Popen(
            [*self._command, *seconds, "--parts", *names],
            stdout=subprocess.PIPE,
            start_new_session=True,
            cwd=ROOT,
        )
        started: list[str] = []
        limit = min(deadline, time.monotonic() + self._start_s)
        for line in _lines(process):
            if line is not None:
                word, _, name = line.partition(" ")
                allowed = self._start_s
                if word == "start" and name in names:
                    started.append(name)
                    allowed = self._budgets[name] + self._grace_s
                if word in ("start", "end"):
                    limit = min(deadline, time.monotonic() + allowed)
            if time.monotonic() > limit:
                stop_group(process)
                if started:
                    self._mark(started[-1], "stopped", "it took too long")
                return started
        code = process.wait()
        stop_group(process)  # what it may have left behind
        if started and self._status(started[-1]) == "unfinished":
            self._mark(started[-1], "failed", f"its process ended with {code}")
        return started

    def _status(self, name: str) -> str:
        return str(Record(self._folder).parts.get(name, {}).get("status", "unfinished"))

    def _mark_all(self, names: Sequence[str], why: str) -> None:
        for name in names:
            self._mark(name, "not run", why)

    def _mark(self, name: str, status: str, why: str) -> None:
        record = Record(self._folder)
        record.save_part(name, {**record.parts.get(name, {}), "status": status, "error": why})


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """What it prints, and None now and then while it is silent, until it has ended."""
    lines: Queue[str] = Queue()
    threading.Thread(target=_pump, args=(process, lines), daemon=True).start()
    while True:
        has_ended = process.poll() is not None
        try:
            yield lines.get(timeout=_POLL_S)
        except Empty:
            if has_ended:
                return
            yield None


def _pump(process: subprocess.Popen[bytes], lines: Queue[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line.decode(errors="replace").strip())
