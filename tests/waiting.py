"""Waiting for conditions, and looking at processes, in tests that run real ones."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil


def wait_for(
    condition: Callable[[], object], what: str, timeout_s: float = 20.0, pause_s: float = 0.01
) -> None:
    """Asks every `pause_s`. Raises AssertionError."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s in vain until {what}")
        time.sleep(pause_s)


def is_alive(pid: int) -> bool:
    """False for a zombie too."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def exists(pid: int) -> bool:
    """True for a zombie too."""
    return psutil.pid_exists(pid)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """It does nothing meanwhile, and goes on behind that unless it was killed."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def pids_in(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []
