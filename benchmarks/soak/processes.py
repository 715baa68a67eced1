"""The server's processes as the kernel sees them: which there are, and what each has."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

_KINDS = {
    "continuo: supervisor": "supervisor",
    "continuo: api 0": "api",
    "continuo: engine 0": "engine",
    "continuo: grammar": "grammar",
    "continuo: grammar check": "grammar check",
}
_MEMORY = re.compile(r"^(?:RssAnon|VmSwap):\s+(\d+) kB$", re.MULTILINE)
_THREADS = re.compile(r"^Threads:\s+(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    pid: int
    memory_mib: float  # RssAnon + VmSwap: what was swapped out is not resident, and not gone
    num_fds: int
    num_threads: int


class Processes:
    """Those of one server, whose supervisor is `pid`. Remembers all that it ever saw."""

    def __init__(self, pid: int) -> None:
        self._supervisor = psutil.Process(pid)
        self._seen: set[psutil.Process] = {self._supervisor}

    def pids(self) -> dict[str, int]:
        """By kind; of two of a kind, one of which ends, the newer."""
        living = [self._supervisor, *self._supervisor.children(recursive=True)]
        self._seen.update(living)
        found: dict[str, tuple[float, int]] = {}
        for process in living:
            try:
                kind = _KINDS.get(" ".join(process.cmdline()).strip())
                if kind is not None and process.status() != psutil.STATUS_ZOMBIE:
                    age = (process.create_time(), process.pid)
                    found[kind] = max(found.get(kind, age), age)
            except psutil.Error:  # it has ended meanwhile
                continue
        return {kind: pid for kind, (_, pid) in found.items()}

    def usage(self) -> dict[str, Usage]:
        found = {}
        for kind, pid in self.pids().items():
            try:
                found[kind] = _usage_of(pid)
            except OSError:
                continue
        return found

    def left_over(self) -> list[str]:
        """Processes that live although their server has ended."""
        living = []
        for process in self._seen:
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    living.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return living


def _usage_of(pid: int) -> Usage:
    """Raises OSError: it has ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    threads = _THREADS.search(status)
    return Usage(
        pid,
        sum(int(kib) for kib in _MEMORY.findall(status)) / 1024,
        len(os.listdir(f"/proc/{pid}/fd")),
        int(threads[1]) if threads else 0,
    )
