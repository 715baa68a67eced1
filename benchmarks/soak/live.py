"""The server that is soaked, from its start to its end, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.serving.live_server import free_port
from benchmarks.soak.world import write_keys

# KV blocks for some 2,400 tokens, and rows for 16 sequences of up to 512: they preempt each other. What is
# kept for repeats reaches its cap within seconds, and a flood is more than can be begun in 3 s.
FLAGS = (
    "--max-num-seqs", "16", "--kv-cache-gib", "0.014", "--resume-memory-mib", "1",
    "--max-queue-seconds", "3",
)  # fmt: skip
_START_S = 300.0  # the kernels may have to be compiled first
_END_S = 60.0


class Server:
    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="continuo-soak-")
        self._log = Path(self._folder.name, "log")
        self._temporary = Path(self._folder.name, "tmp")
        self._temporary.mkdir()
        keys = Path(self._folder.name, "keys")
        write_keys(keys)
        self.port = free_port()
        command = [sys.executable, "-m", "server", "serve", "--port", str(self.port), *FLAGS]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--api-key-file", str(keys)],
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self._temporary)},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        """Raises RuntimeError: it does not start."""
        until = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < until:
            if self._is_ready():
                return
            time.sleep(0.05)
        raise RuntimeError("the server does not start")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def end(self) -> list[str]:
        """By SIGTERM. What is wrong with how it ended."""
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return [f"the server had not ended {_END_S:.0f} s after SIGTERM"]
        faults = [] if status == 0 else [f"the server ended with status {status}"]
        left = sorted(each.name for each in self._temporary.iterdir())
        if left:
            faults.append(f"the server left temporary files behind: {', '.join(left)}")
        return faults

    def logged_faults(self) -> list[str]:
        """What it calls a fault of its own in its log."""
        marks = ("Traceback", " failed: ")
        lines = self._log.read_text(errors="replace").splitlines()
        return [f"in its log: {line[:300]}" for line in lines if any(m in line for m in marks)]

    def last_lines(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])

    def clean_up(self) -> None:
        """Whatever has happened."""
        if self._process.poll() is None:
            self._process.kill()  # its children die with it
            self._process.wait()
        self._folder.cleanup()
