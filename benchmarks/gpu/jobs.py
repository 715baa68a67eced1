"""Commands that run beside each other, each with its own output file, until they end or time is up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 0.2


@dataclass
class Job:
    """A command; `code` is None until it has ended, and stays None if it was stopped."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str | None]  # changes; None: unset
    log: Path
    code: int | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = dict(os.environ)
        for name, value in self.environment.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                cwd=ROOT,
            )

    def is_over(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            self.code = self.process.returncode
        return self.code is not None

    def stop(self) -> None:
        if self.process is not None and not self.is_over():
            stop_group(self.process)

    def said(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, with all its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_until(jobs: Sequence[Job], deadline: float) -> None:
    """Wait for jobs that have been started; those that run at `deadline` (monotonic) are stopped."""
    while time.monotonic() < deadline and not _all_over(jobs):
        time.sleep(_POLL_S)
    for job in jobs:
        job.stop()


def _all_over(jobs: Sequence[Job]) -> bool:
    return sum(job.is_over() for job in jobs) == len(jobs)  # asks each of them
