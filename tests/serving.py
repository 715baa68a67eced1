"""`continuo serve` as real processes: start it, know its processes, end it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import psutil

from tests.waiting import is_alive, wait_for

_COLD_START_S = 240  # the kernels may have to be compiled first
ROOT = Path(__file__).resolve().parent.parent


class Server:
    """Starts `python -m server serve`, or that of another module, on a free port; stderr goes to a file."""

    def __init__(self, model: Path, *flags: str, module: str = "server") -> None:
        self.stderr_file = tempfile.NamedTemporaryFile("w+", prefix="serve-", suffix=".log")  # noqa: SIM115
        self.temporary_dir = tempfile.TemporaryDirectory()
        self.client = httpx.Client(timeout=30)
        command = [sys.executable, "-m", module, "serve", "--model", str(model), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--max-num-seqs", "8", *flags],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": self.temporary_dir.name},
            stderr=self.stderr_file,
        )

    @property
    def stderr(self) -> str:
        return Path(self.stderr_file.name).read_text()

    @property
    def address(self) -> str:
        found = re.search(r"ready in [\d.]+ s: (\S+)", self.stderr)
        assert found, self.stderr
        return found.group(1)

    def wait_ready(self) -> Server:
        wait_for(
            lambda: "ready in" in self.stderr or self.process.poll() is not None,
            "the server is ready",
            timeout_s=_COLD_START_S,
        )
        assert self.process.poll() is None, self.stderr
        self.client.base_url = self.address
        return self

    def pid_of(self, title: str) -> int:
        """Of the living child whose process title is `continuo: {title}`."""
        for child in psutil.Process(self.process.pid).children():
            try:
                if child.cmdline()[:1] == [f"continuo: {title}"] and is_alive(child.pid):
                    return child.pid
            except psutil.NoSuchProcess:
                continue
        return 0

    def all_pids(self) -> list[int]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [self.process.pid, *(child.pid for child in children)]

    def is_answering(self) -> bool:
        try:
            return self.client.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))

    def end(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.end(
                signal.SIGINT
            )  # at once: a stream that a failed test has left is not waited for
        print(self.stderr)  # shown beside a failure
        self.client.close()
        self.stderr_file.close()
        self.temporary_dir.cleanup()
